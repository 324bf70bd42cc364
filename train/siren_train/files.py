"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siren_runtime.errors import InputError


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
