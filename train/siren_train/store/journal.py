"""What a long run has done so far: entries on disk, a JSON object a line."""

from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from siren_runtime.errors import InputError

Entry = TypeVar("Entry", bound=msgspec.Struct)


def read_entries(path: Path, kind: type[Entry], advice: str) -> tuple[list[Entry], int]:
    """Read the entries of a file, which may not be there yet.

    Args:
        advice: what to do with a file that is damaged.

    Returns:
        The entries, and how many bytes they take. What a killed process left of a line is behind.

    Raises:
        InputError: a line is not such an entry.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    try:
        entries = [msgspec.json.decode(line, type=kind) for line in whole.splitlines()]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged: {error}; {advice}") from None
    return entries, len(whole)


class Journal(Generic[Entry]):
    """A file that entries are added to. What a killed process left of a line is dropped.

    Attributes:
        entries: all so far, in the order in which they were added.
    """

    def __init__(self, path: Path, kind: type[Entry], advice: str) -> None:
        """Read what is there, as `read_entries`."""
        self.entries, whole = read_entries(path, kind, advice)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def add(self, entry: Entry) -> None:
        """Write an entry."""
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Journal[Entry]":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
