"""Read responses with the span where harm starts and ends, for streaming evaluation.

A row has `prompt` (may be empty or missing), `response`, `harm_start` and `harm_end`, and a
`split`, unless it is written before the path. The span is of characters of the response, its end
excluded; a row without one is safe throughout.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from siren_runtime.errors import InputError

from .rows import Source, read_fields

_SPAN = ("harm_start", "harm_end")


@dataclass(frozen=True)
class StreamRow:
    """A response, what it answers, and where it is harmful: [start, end) in characters, or not."""

    origin: str
    dataset: str
    prompt: str | None
    response: str
    span: tuple[int, int] | None


def read_stream_rows(sources: Sequence[Source], split: str, split_column: str) -> list[StreamRow]:
    """Return the rows of a split, in order.

    Raises:
        InputError: a row lacks a response, its span does not lie in it, or there is no row.
    """
    rows: list[StreamRow] = []
    found: set[str] = set()
    for source in sources:
        for origin, own_split, fields in read_fields(source):
            name = source.split or own_split or _text(fields, split_column, origin)
            found.add(name)
            if name == split:
                rows.append(_parse(origin, source.dataset, fields))
    if not rows:
        raise InputError(
            f"no rows of the {split!r} split in {', '.join(s.location for s in sources)}; "
            f"found {', '.join(sorted(found)) or 'none'}"
        )
    return rows


def pieces_of(row: StreamRow, words: int) -> Iterator[str]:
    """Cut the response as it could arrive: so many words at a time, and where the span is cut."""
    cuts = {0, len(row.response), *(row.span or ())}
    count, inside = 0, False
    for index, character in enumerate(row.response):
        if inside and character.isspace():
            count += 1
            if count % words == 0:
                cuts.add(index)
        inside = not character.isspace()
    for start, end in pairwise(sorted(cuts)):
        yield row.response[start:end]


def _parse(origin: str, dataset: str, fields: Mapping[str, Any]) -> StreamRow:
    response = _text(fields, "response", origin)
    if not response.strip():
        raise InputError(f"{origin}: column 'response' is empty")
    start, end = (_position(fields.get(name), name, origin) for name in _SPAN)
    if (start is None) != (end is None):
        raise InputError(f"{origin}: give both harm_start and harm_end, or neither for a safe row")
    span = None if start is None or end is None else (start, end)
    if span is not None and not span[0] < span[1] <= len(response):
        raise InputError(
            f"{origin}: harm from {span[0]} to {span[1]} is no span of a response of "
            f"{len(response)} characters"
        )
    prompt = fields.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise InputError(f"{origin}: column 'prompt' is {prompt!r}; expected a string")
    return StreamRow(origin, dataset, prompt or None, response, span)


def _text(fields: Mapping[str, Any], name: str, origin: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InputError(
            f"{origin}: column {name!r} is {value!r}, expected a string; found "
            f"{', '.join(map(str, fields)) or 'no column'}"
        )
    return value


def _position(value: Any, name: str, origin: str) -> int | None:
    """A character's index; None where there is none. CSV has text, parquet may have floats."""
    if value is None or value == "" or value != value:
        return None
    try:
        position = int(value)
    except (TypeError, ValueError, OverflowError):
        position = -1
    if (
        position < 0
        or isinstance(value, bool)
        or (not isinstance(value, str) and position != value)
    ):
        raise InputError(f"{origin}: column {name!r} is {value!r}; expected a character's index")
    return position
