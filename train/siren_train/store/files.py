"""Files that are there whole or not at all, and folders that one process has to itself."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siren_runtime.errors import InputError

if sys.platform != "win32":
    import fcntl

LOCK_FILE = ".lock"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it into place at the end.

    Raises:
        InputError: the system refuses; what was written is removed.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename it into place.

    Raises:
        InputError: as `replaced`.
    """
    with replaced(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Keep others of `command` out of `folder`, which is made if need be.

    A lock goes with its process, even a killed one.

    Raises:
        InputError: another is in there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("wb") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{folder}: another {command} is at work here; wait until it ends, or choose "
                    "another folder"
                ) from None
        yield
