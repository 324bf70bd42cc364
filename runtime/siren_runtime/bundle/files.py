"""Files that are there whole or not at all, and what is in them."""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from siren_runtime.errors import BundleError, SirenError

_CHUNK = 1 << 20
_GIT_LFS = b"version https://git-lfs.github.com/spec/v1"
GIT_LFS_ADVICE = (
    "holds a pointer of git LFS in place of the file; run `git lfs pull` in the repository that it "
    "comes from, or download the file"
)


class ReadFailures:
    """Raise what the system raises in the block as an `error` that says which file it cannot read.

    Anything else comes out as it is.
    """

    def __init__(self, path: Path, error: type[SirenError] = BundleError) -> None:
        self._path, self._error = path, error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise self._error(f"{self._path}: cannot be read: {error}") from None


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
def replacement(path: Path, error: Callable[[str], SirenError]) -> Iterator[Path]:
    """Yield a hidden place beside `path`; what the block writes there takes its place at the end.

    Raises:
        error: the file cannot be written. What the block raises otherwise comes out as it is, and
            nothing is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    _remove_leftovers(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as failure:
        raise error(f"{path}: cannot be written: {failure.strerror or failure}") from failure
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of that number is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it."""
    name = re.compile(rf"\.{re.escape(path.name)}\.([0-9]{{1,9}})\.[0-9]+")
    with suppress(OSError):
        for beside in path.parent.iterdir():
            match = name.fullmatch(beside.name)
            if match and not is_running(int(match[1])):
                beside.unlink(missing_ok=True)


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
