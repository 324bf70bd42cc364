"""Files that are there whole or not at all, and what is in them."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from siren_runtime.errors import BundleError, SirenError, is_of_caller

if sys.platform != "win32":
    import fcntl

_LOCK_FILE = ".siren-lock"
_CHUNK = 1 << 20
_GIT_LFS = b"version https://git-lfs.github.com/spec/v1"
GIT_LFS_ADVICE = (
    "holds a pointer of git LFS in place of the file; run `git lfs pull` in the repository that it "
    "comes from, or download the file"
)


class ReadFailures:
    """Raise what the system raises in the block as an `error` that says which file it cannot read.

    Anything else comes out as it is, such as an alarm's TimeoutError.
    """

    def __init__(self, path: Path, error: type[SirenError] = BundleError) -> None:
        self._path, self._error = path, error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not is_of_caller(error):
            raise self._error(f"{self._path}: cannot be read: {error.strerror or error}") from None


def is_git_lfs_pointer(path: Path) -> bool:
    """Whether a file is what git leaves where git LFS did not fetch the content.

    https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_GIT_LFS)) == _GIT_LFS


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_whole(path: Path) -> npt.NDArray[np.uint8]:
    """Read a file into memory of our own, in large pages where the system has them.

    Raises:
        OSError: it cannot be read, or was cut while it was.
    """
    with path.open("rb", buffering=0) as file:
        data = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
        rest = data.data
        while rest:
            count = file.readinto(rest)
            if not count:
                raise OSError(f"the file ended {len(rest)} bytes early; it was cut meanwhile")
            rest = rest[count:]
    return data


@contextmanager
def hidden_place(path: Path) -> Iterator[Path]:
    """Yield a place on the disk of `path`, which no other call has, for a file or a folder.

    It lies in a hidden folder beside `path`, which is removed when the block ends. What killed
    calls for `path` left is removed before: a folder whose lock can be taken. Process ids would not
    tell, since every container counts its own.

    Raises:
        OSError: the hidden folder cannot be made.
    """
    beside = f".{path.name}.partial-"
    _remove_leftovers(path.parent, beside)
    folder = Path(tempfile.mkdtemp(prefix=beside, dir=path.parent))
    try:
        with (folder / "lock").open("wb") as lock:
            if _taken(lock):  # before it has the name by which others look for it
                (folder / "lock").rename(folder / _LOCK_FILE)
            yield folder / "new"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacement(path: Path, error: Callable[[str], SirenError]) -> Iterator[Path]:
    """Yield a hidden place for a file; what the block writes there becomes `path` at the end.

    Raises:
        error: the file cannot be written. What the block raises otherwise comes out as it is, and
            nothing is left.
    """
    try:
        with hidden_place(path) as partial:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    except OSError as failure:
        if is_of_caller(failure):
            raise
        raise error(f"{path}: cannot be written: {failure.strerror or failure}") from failure


def _taken(lock: IO[bytes]) -> bool:
    """Take the lock on an open file, if it is free; not on Windows or a disk without locks."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_leftovers(parent: Path, beginning: str) -> None:
    """Remove the hidden folders whose names begin so and whose makers were killed."""
    with suppress(OSError):
        for folder in parent.iterdir():
            if not folder.name.startswith(beginning):
                continue
            with suppress(OSError), (folder / _LOCK_FILE).open("r+b") as lock:
                if _taken(lock):
                    shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, data: bytes | memoryview, error: type[SirenError]) -> None:
    """Put `data` at `path` in one step.

    Raises:
        error: the file cannot be written.
    """
    with replacement(path, error) as partial:
        write_durably(partial, data)


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until it is on disk.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
