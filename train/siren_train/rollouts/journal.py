"""What a long run has done so far: entries on disk, one a line."""

from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from siren_runtime.errors import InputError

Entry = TypeVar("Entry", bound=msgspec.Struct)


class Journal(Generic[Entry]):
    """A file that entries are added to. What a killed process left of a line is dropped.

    Attributes:
        entries: all so far, in the order in which they were added.
    """

    def __init__(self, path: Path, kind: type[Entry]) -> None:
        """Read what is there.

        Raises:
            InputError: a line is not such an entry.
        """
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        try:
            self.entries = [msgspec.json.decode(line, type=kind) for line in whole.splitlines()]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: damaged: {error}; remove the folder {path.parent}, whose other files go "
                "by this one, to begin anew"
            ) from None
        self._file = path.open("ab")
        self._file.truncate(len(whole))

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
