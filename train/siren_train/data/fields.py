"""The columns of one row: what must be there."""

from collections.abc import Mapping
from reprlib import repr as shorten
from typing import Any

from siren_runtime.errors import InputError

Fields = Mapping[str, Any]


def required(fields: Fields, name: str, origin: str = "", of: str = "") -> Any:
    """Return what a row has in a column.

    Args:
        origin: where the row stands, for the error message; empty where who calls adds it.
        of: what the message says of the column, behind its name.

    Raises:
        InputError: the row has no such column.
    """
    if name not in fields:
        found = ", ".join(map(str, fields)) or "none"
        raise InputError(f"{_at(origin)}no column {name!r}{of}; found {found}")
    return fields[name]


def required_string(fields: Fields, name: str, origin: str = "") -> str:
    """Return the string that a row has in a column; arguments as `required`.

    Raises:
        InputError: the row has no such column, or another value in it.
    """
    value = required(fields, name, origin)
    if not isinstance(value, str):
        raise InputError(f"{_at(origin)}column {name!r} is {shorten(value)}; expected a string")
    return value


def _at(origin: str) -> str:
    return f"{origin}: " if origin else ""
