"""Read responses with the span where harm starts and ends, for streaming evaluation.

A row has `response`, `harm_start` and `harm_end`, and may have a `prompt`. It has a `split` too,
unless the source names one. The span counts characters of the response, and its end is not part of
it. A row without a span is safe throughout, or where its `label` is class 1, harmful throughout.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from siren_runtime.errors import InputError

from .fields import warn_of_lone_responses
from .readers import read_fields
from .rows import Columns, bounded, label_of
from .sources import Source

_SPAN = ("harm_start", "harm_end")
_TURNS = ("prompt", "response")


@dataclass(frozen=True)
class StreamRow:
    """A response, and where it is harmful.

    Attributes:
        origin: the file and the row's place in it, for error messages.
        dataset: the name of the data set that it belongs to.
        prompt: what it answers; empty if that is not known.
        response: the whole text that will be streamed.
        span: the first harmful character and the one after the last; None if it is safe.
    """

    origin: str
    dataset: str
    prompt: str
    response: str
    span: tuple[int, int] | None

    @property
    def label(self) -> int:
        """1 where it is harmful anywhere, else 0."""
        return int(self.span is not None)


def read_stream_rows(sources: Sequence[Source], split: str, columns: Columns) -> list[StreamRow]:
    """Return the rows of a split, in order.

    Args:
        columns: which hold the split, where neither the source nor the hub gives it, the label,
            and as `text` the response alone, or the prompt and the response.

    Raises:
        InputError: a row has no response or too large a text, its span does not lie in the
            response, its label is no class, or the split has no row.
    """
    if len(columns.text) > len(_TURNS):
        raise InputError(
            "of a stream the text columns are the response's, or the prompt's and the "
            f"response's; found {', '.join(columns.text)}"
        )
    rows: list[StreamRow] = []
    found: set[str] = set()
    for source in sources:
        unread = Counter[str]()
        for origin, own_split, fields in read_fields(source):
            name = source.split or own_split or _text(fields, columns.split, origin)
            found.add(name)
            if name == split:
                rows.append(_parse(origin, source.dataset, fields, columns))
                unread[columns.beside_response(fields)] += 1
        warn_of_lone_responses(source.location, unread)
    if not rows:
        raise InputError(
            f"no rows of the {split!r} split in {', '.join(s.location for s in sources)}; "
            f"found {', '.join(sorted(found)) or 'none'}"
        )
    return rows


def pieces_of(row: StreamRow, words: int) -> Iterator[str]:
    """Cut the response as it could arrive: after every `words` words.

    It is also cut where the harmful span starts and where it ends.
    """
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


def _parse(origin: str, dataset: str, fields: Mapping[str, Any], columns: Columns) -> StreamRow:
    *before, name = columns.text or _TURNS
    response = _text(fields, name, origin)
    if not response.strip():
        raise InputError(f"{origin}: column {name!r} is empty")
    start, end = (_position(fields.get(name), name, origin) for name in _SPAN)
    if (start is None) != (end is None):
        raise InputError(f"{origin}: give both harm_start and harm_end, or neither for a safe row")
    span = None if start is None or end is None else (start, end)
    if span is not None and not span[0] < span[1] <= len(response):
        raise InputError(
            f"{origin}: harm from {span[0]} to {span[1]} is no span of a response of "
            f"{len(response)} characters"
        )
    asked = columns.label != Columns().label
    if span is None and _has(fields, columns.label, asked):
        span = (0, len(response)) if label_of(fields, columns, origin) == 1 else None
    prompt = ""
    for turn in before:
        if _has(fields, turn, bool(columns.text)):
            prompt = _text(fields, turn, origin)
    bounded(prompt + response, columns, origin)
    return StreamRow(origin, dataset, prompt, response, span)


def _has(fields: Mapping[str, Any], name: str, asked: bool) -> bool:
    """Whether a column is to be read: it holds something, or it was asked for and is missing."""
    return (asked and name not in fields) or not _is_empty(fields.get(name))


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value != value


def _text(fields: Mapping[str, Any], name: str, origin: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InputError(
            f"{origin}: column {name!r} is {value!r}, expected a string; found "
            f"{', '.join(map(str, fields)) or 'no column'}"
        )
    return value


def _position(value: Any, name: str, origin: str) -> int | None:
    """Read a character's index, or None from an empty cell.

    CSV gives text, and parquet may give floats.
    """
    if _is_empty(value):
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
