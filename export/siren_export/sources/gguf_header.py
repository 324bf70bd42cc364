"""Typed reading of a header's keys; what nothing read can be refused by name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from siren_runtime.errors import CheckpointError

from .gguf_file import Value, shown
from .sizes import LARGEST_SIZE

T = TypeVar("T")


class Header:
    """The values of a header, each of the type that is asked for.

    A method without a default raises CheckpointError where the key is missing; every one does
    where the value is of another type or range.
    """

    def __init__(self, path: Path, values: Mapping[str, Value]) -> None:
        self.path = path
        self._values = values
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer from 1 to `LARGEST_SIZE`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SIZE:
            raise self.refusal(key, f"expected a whole number from 1 to {LARGEST_SIZE:,}")
        return value

    def token(self, key: str, tokens: int) -> int | None:
        """The id of a token of a vocabulary; None where there is none."""
        if key not in self._values:
            return None
        value = self._value(key, None)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < tokens:
            raise self.refusal(key, f"expected the id of one of {tokens:,} tokens")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._value(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 < value < math.inf
        ):
            raise self.refusal(key, "expected a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or False."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "expected a flag")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.refusal(key, "expected a string")
        return value

    def strings(self, key: str) -> list[str]:
        """An array of strings."""
        value = self._value(key, None)
        if not isinstance(value, list):
            raise self.refusal(key, "expected an array of strings")
        return value

    def array(self, key: str, kind: str, length: int) -> list[Any]:
        """An array of `length` numbers of numpy's kind (`i`, `f` or `b`), `u` passing as `i`."""
        value = self._value(key, None)
        found = value.dtype.kind.replace("u", "i") if isinstance(value, np.ndarray) else None
        if found != kind or not isinstance(value, np.ndarray) or len(value) != length:
            kinds = {"i": "integers", "f": "floats", "b": "flags"}
            raise self.refusal(key, f"expected {length:,} {kinds[kind]}")
        items: list[Any] = value.tolist()
        return items

    def is_array(self, key: str) -> bool:
        """Whether the key holds an array."""
        return isinstance(self._values.get(key), (list, np.ndarray))

    def only(self, key: str, *allowed: Any, expected: str | None = None) -> None:
        """Refuse a value at which the graphs would not be the model's; it may be missing.

        Args:
            expected: what the error says beside the value found; by default what is allowed.
        """
        if key in self._values:
            value = self._value(key, None)
            same = (value == one and type(value) is type(one) for one in allowed)
            if isinstance(value, (np.ndarray, list)) or not any(same):
                listed = " or ".join(map(shown, allowed))
                raise self.refusal(key, expected or f"only {listed} is supported")

    def note(self, *keys: str) -> None:
        """Count keys as read: at any value they change no score."""
        self._read |= {key for key in keys if key in self._values}

    def unread(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix` and that nothing has read."""
        return sorted(k for k in self._values if k.startswith(prefix) and k not in self._read)

    def check_all_read(self, prefix: str) -> None:
        """Refuse keys that begin with `prefix` and that nothing has read."""
        if unknown := self.unread(prefix):
            raise CheckpointError(
                f"{self.path}: the header has keys that are not known: {', '.join(unknown)[:400]}; "
                "each could change a score, so none is dropped"
            )

    def refusal(self, key: str, expected: str) -> CheckpointError:
        """An error that names the file, the key, what was found and what was expected."""
        if key not in self._values:
            return CheckpointError(f"{self.path}: the header has no {key}; {expected}")
        value = self._values[key]
        found = (
            f"an array of {len(value)}" if isinstance(value, (list, np.ndarray)) else shown(value)
        )
        return CheckpointError(f"{self.path}: {key} is {found}; {expected}")

    def _value(self, key: str, default: T) -> Value | T:
        self._read.add(key)
        return self._values.get(key, default)
