"""The columns of one row: what must be there, and what may be."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from reprlib import repr as shorten
from typing import Any

from siren_runtime.errors import InputError

Fields = Mapping[str, Any]

_log = logging.getLogger(__name__)


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


def name_in(fields: Fields, name: str, origin: str, expected: str = "a string") -> str:
    """Return the string that a row has in a column that it may lack, in one line that is UTF-8.

    It is empty where the column is not there or empty, for which parquet may have NaN.

    Raises:
        InputError: the row has another value in it; the message says what is `expected`.
    """
    value = fields.get(name)
    if value is None or value != value:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # an id, as tables have them
    if not isinstance(value, str):
        raise InputError(f"{origin}: column {name!r} is {shorten(value)}; expected {expected}")
    return _in_one_line(value)


def names_in(fields: Fields, name: str, origin: str) -> list[str]:
    """Return the strings of a column that may hold one or a list of them, as `name_in` does.

    Raises:
        InputError: the row has another value in it.
    """
    value = fields.get(name)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return [_in_one_line(one) for one in value if one.strip()]
    return [name_in(fields, name, origin, "a string, or a list of strings")]


def text_beside(fields: Fields, known: Collection[str]) -> str:
    """Return the first column that holds several words and is not one of those that are known.

    It is empty where there is none.
    """
    return next(
        (
            name
            for name, value in fields.items()
            if name not in known and isinstance(value, str) and len(value.split()) > 1
        ),
        "",
    )


def warn_of_lone_responses(location: str, rows: Counter[str]) -> None:
    """Say in the log which columns of a source have text beside a response without a prompt.

    Args:
        rows: how many there are by what `text_beside` says of each; of "" none is counted.
    """
    for name in filter(None, rows):
        _log.warning(
            "%s: of %s rows the response is read alone: they have no prompt, and the text in "
            "column %r is not read; where it is the prompt, give --text %s,response",
            location,
            f"{rows[name]:,}",
            name,
            name,
        )


def _in_one_line(text: str) -> str:
    """Make a name fit for tables and files: one line, without lone surrogates."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _at(origin: str) -> str:
    return f"{origin}: " if origin else ""
