"""Folders that one process has to itself."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siren_runtime.errors import InputError

if sys.platform != "win32":
    import fcntl

_LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Keep other processes of `command` out of `folder` while the block runs.

    The folder is made if it is not there. The system gives the lock up when its process ends, even
    one that was killed. On Windows nothing is locked.

    Raises:
        InputError: another process is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("wb") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{folder}: another {command} is at work here; wait until it ends, or choose "
                    "another folder"
                ) from None
        yield
