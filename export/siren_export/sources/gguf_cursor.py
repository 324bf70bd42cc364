"""Go through the bytes of a GGUF header, each length held against what is left."""

import mmap
import struct
from pathlib import Path

import numpy as np

from siren_runtime.errors import CheckpointError

from .weights import Array

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Codes of the header's numbers: struct's letters.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
# A sane header has a vocabulary and its merges, and lies in some 20 MB.
_MAX_BYTES = 256 << 20
_MAX_STRINGS = 1 << 21
_MAX_STRING_BYTES = 16 << 20


class Cursor:
    """A place in the bytes of a header.

    Every method takes what it reads for the error's sake, and raises CheckpointError where the
    file ends before it, or a bound is passed.
    """

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.position = 0
        self._data = data
        self._path = path
        self._strings = 0  # of all arrays

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        self._check(count, what)
        start, self.position = self.position, self.position + count
        return self._data[start : self.position]

    def number(self, letter: str, what: str) -> int:
        """An unsigned integer of struct's `letter`."""
        return int(self._unpack(letter, what))

    def count(self, what: str, most: int) -> int:
        """A count of at most `most`."""
        count = self.number("Q", what)
        if count > most:
            raise CheckpointError(
                f"{self._path}: {what} is {count:,}; a sane header has at most {most:,}"
            )
        return count

    def string(self, what: str, most: int) -> str:
        """A string of at most `most` bytes."""
        length = self.number("Q", f"{what}: length")
        if length > most:
            raise CheckpointError(
                f"{self._path}: {what} is a string of {length:,} bytes; a sane header has at "
                f"most {most:,}"
            )
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as failure:
            raise CheckpointError(f"{self._path}: {what} is not UTF-8: {failure}") from None

    def value(self, key: str) -> bool | int | float | str | Array | list[str]:
        """The value of a key: its type, then itself."""
        code = self.number("I", f"{key}: type")
        if code == _ARRAY:
            return self._array(key)
        if code == _STRING:
            return self.string(key, _MAX_STRING_BYTES)
        if code == _BOOL:
            return self._bool(key)
        return self._unpack(self._letter(code, key), key)

    def _array(self, key: str) -> Array | list[str]:
        code = self.number("I", f"{key}: type of its elements")
        length = self.number("Q", f"{key}: number of elements")
        if code == _STRING:
            self._strings += length
            if self._strings > _MAX_STRINGS:
                raise CheckpointError(
                    f"{self._path}: {key} has {length:,} strings; a sane header has at most "
                    f"{_MAX_STRINGS:,} in all"
                )
            return [self.string(f"{key}[{i}]", _MAX_STRING_BYTES) for i in range(length)]
        dtype = np.dtype("?" if code == _BOOL else f"<{self._letter(code, key)}")
        data = self.take(length * dtype.itemsize, key)
        if code == _BOOL and data.strip(b"\0\1"):
            raise CheckpointError(f"{self._path}: {key} holds a flag that is neither 0 nor 1")
        return np.frombuffer(data, dtype)

    def _bool(self, key: str) -> bool:
        byte = self.number("B", key)
        if byte > 1:
            raise CheckpointError(f"{self._path}: {key} is a flag of {byte}; expected 0 or 1")
        return bool(byte)

    def _letter(self, code: int, key: str) -> str:
        if code not in _NUMBERS:
            raise CheckpointError(
                f"{self._path}: {key} has a value of type {code}, which GGUF does not have"
                + (" in an array" if code == _ARRAY else "")
            )
        return _NUMBERS[code]

    def _unpack(self, letter: str, what: str) -> int | float:
        layout = struct.Struct(f"<{letter}")
        value: int | float = layout.unpack(self.take(layout.size, what))[0]
        return value

    def _check(self, count: int, what: str) -> None:
        left = len(self._data) - self.position
        if count > left:
            raise CheckpointError(
                f"{self._path}: {what} has {count:,} bytes and the file {left:,} more; it is cut "
                "short or damaged, get it again"
            )
        if self.position + count > _MAX_BYTES:
            raise CheckpointError(
                f"{self._path}: the header reaches beyond {_MAX_BYTES:,} bytes at {what}; the "
                "file is damaged"
            )
