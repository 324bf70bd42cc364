"""Read what is to be scored from a stream: JSON objects, a JSON array or plain lines, as they
arrive."""

import json
import math
import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any, BinaryIO, Literal

from siren_runtime.errors import InputError

from .array import GrowingArray
from .keys import repeated
from .rules import lone_surrogate, one_text
from .trajectory import Trajectory, trajectory_of

InputFormat = Literal["auto", "jsonl", "lines"]

MAX_LINE_BYTES = 16 << 20
ROW_KEYS = ("text", "prompt", "response", "id")
TRAJECTORY_KEYS = ("messages", "tools", "id")
_CHUNK = 1 << 20
_MARK = b"\xef\xbb\xbf"  # of byte order
# What begins a JSON array of rows. "[INST] hello" and "[1] a footnote" are plain texts.
_ARRAY = re.compile(rb'\s*\[\s*(?:[{"\]]|$)')
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "true or false"}


@dataclass(frozen=True)
class Line:
    """One line of input: its text or its trajectory, or why it has none.

    Attributes:
        text: of a trajectory, its last message.
        pair: the prompt and the response that the text is made of, where it is.
        number: from 1; of a JSON array, the place of the element.
        kept: the row's keys that were asked for, with their JSON values.
        unknown_key: the row's key that nobody knows, where that is the error.
    """

    number: int
    text: str | None = None
    id: str | int | float | None = None
    error: str | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)
    unknown_key: str | None = None
    pair: tuple[str | None, str | None] | None = None
    trajectory: Trajectory | None = None


class _Row(dict[str, Any]):
    """A JSON object, with a key that it names twice."""

    repeated: str | None = None


_OfRow = Callable[[_Row], dict[str, Any]]  # what a row's own keys make of its `Line`
_Chunk = list[tuple[int, bytes]]  # lines that a read brought, each with its number


def read_texts(
    stream: BinaryIO,
    format: InputFormat,
    keep: Collection[str] = (),
    *,
    trajectories: bool = False,
) -> Iterator[list[Line]]:
    """Yield the lines of `stream` in groups, each what one read brought; blank lines have none.

    A pipe's read returns what has been written so far, so nothing waits for more input, and
    what arrives during scoring makes the next, larger group. "auto" takes the stream for jsonl
    if its first text starts with "{". Where that begins a JSON array of objects or strings, the
    elements are the rows, each as soon as it is complete; where the array breaks off, the rest
    is read by lines. Memory is bounded: a line of over `MAX_LINE_BYTES` is dropped and reported.

    Args:
        keep: keys of rows that `Line.kept` holds; any other than these and `ROW_KEYS` is an error.
        trajectories: rows are trajectories, of `TRAJECTORY_KEYS`; for "jsonl".
    """
    of_row = _trajectory_row if trajectories else _text_row
    chunks: Iterable[_Chunk] = _numbered(stream)
    if format != "lines":
        chunks = yield from _elements(iter(chunks), keep, of_row)
    for chunk in chunks:
        group = []
        for number, data in chunk:
            if format == "auto":
                format = "jsonl" if data.lstrip().startswith(b"{") else "lines"
            group.append(_line(number, data, format, keep, of_row))
        yield group


def _numbered(stream: BinaryIO) -> Iterator[_Chunk]:
    """The lines that are not blank, as reads bring them."""
    count = 0
    for lines in _split(stream):
        if lines and not count:
            lines[0] = lines[0].removeprefix(_MARK)
        numbered = enumerate(lines, count + 1)
        yield [(number, data) for number, data in numbered if data and not data.isspace()]
        count += len(lines)


def _split(stream: BinaryIO) -> Iterator[list[bytes]]:
    rest = b""
    while chunk := stream.read1(_CHUNK):  # type: ignore[attr-defined]  # buffered readers have it
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[: MAX_LINE_BYTES + 1]
        yield lines
    yield [rest]


def _elements(
    chunks: Iterator[_Chunk], keep: Collection[str], of_row: _OfRow
) -> Generator[list[Line], None, Iterable[_Chunk]]:
    """Yield the elements of a JSON array, if the first line begins one; return what is left."""
    first = next(filter(None, chunks), [])
    chunks = chain([first], chunks)
    if not first or not _begins_array(first[0][1]):
        return chunks
    array, numbers = GrowingArray(_DECODER, MAX_LINE_BYTES), list[int]()
    for chunk in chunks:
        lines = [*takewhile(lambda line: len(line[1]) <= MAX_LINE_BYTES, chunk)]
        elements = array.add("".join(f"{_decoded(data)}\n" for _, data in lines))
        places = range(array.given - len(elements) + 1, array.given + 1)
        yield [_element(*element, keep, of_row) for element in zip(places, elements, strict=True)]
        numbers += [number for number, _ in lines]
        del numbers[: len(numbers) - array.rest.count("\n")]
        if array.problem is not None or len(lines) < len(chunk):
            break
    array.end()
    left = chunk[len(lines) :]
    if array.problem is not None:
        held = zip(numbers, array.rest.split("\n"), strict=False)
        left[:0] = [(number, _encoded(line)) for number, line in held if line.strip()]
        if array.given:
            error = f"the JSON array breaks off ({array.problem}); the rest is read by lines"
            yield [Line(array.given + 1, error=error)]
    return chain([left], chunks)


def _begins_array(data: bytes) -> bool:
    """Whether a line may be the first of a JSON array: '["a note"]: see below' may not."""
    if len(data) > MAX_LINE_BYTES or _ARRAY.match(data) is None:
        return False
    array = GrowingArray(_DECODER, MAX_LINE_BYTES)
    array.add(f"{_decoded(data)}\n")
    return array.problem is None


def _decoded(data: bytes) -> str:
    """A line as text; bytes that are not UTF-8 become lone surrogates, which no row may hold."""
    return data.decode("utf-8", "surrogateescape")


def _encoded(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")


def _line(
    number: int, data: bytes, format: InputFormat, keep: Collection[str], of_row: _OfRow
) -> Line:
    if len(data) > MAX_LINE_BYTES:
        hint = (
            "" if _ARRAY.match(data) is None else "; write an element a line, as jq -c '.[]' does"
        )
        return Line(number, error=f"longer than {MAX_LINE_BYTES} bytes{hint}")
    try:
        text = data.decode("utf-8")
        if format == "lines":
            return Line(number, text.removesuffix("\r"))
        value = _decode(text)
    except InputError as error:
        return Line(number, error=str(error))
    except UnicodeDecodeError as error:
        return Line(number, error=_not_utf8(error))
    if not isinstance(value, _Row):
        return Line(number, error=f"expected a JSON object, found {_kind(value)}")
    return _row(number, value, keep, of_row)


def _element(number: int, value: Any, keep: Collection[str], of_row: _OfRow) -> Line:
    """An element of a JSON array: an object, or a text as a string."""
    if isinstance(value, str):
        value = _Row(text=value)
    if isinstance(value, _Row):
        return _row(number, value, keep, of_row)
    return Line(number, error=f"expected an object or a string, found {_kind(value)}")


def _text_row(row: _Row) -> dict[str, Any]:
    for key in ("text", "prompt", "response"):
        if not isinstance(row.get(key), str | None):
            raise InputError(f"{key!r} must be a string, found {_kind(row[key])}")
    text = one_text(row.get("text"), row.get("prompt"), row.get("response"))
    pair = None if row.get("text") is not None else (row.get("prompt"), row.get("response"))
    return {"text": text, "pair": pair}


def _trajectory_row(row: _Row) -> dict[str, Any]:
    if "messages" not in row:
        raise InputError("has no 'messages'; a trajectory is a list of them")
    trajectory = trajectory_of(messages=row["messages"] or [], tools=row.get("tools"))
    if not trajectory.turns:
        raise InputError("'messages' has no turn of a user, an assistant or a tool")
    last = trajectory.turns[-1]
    return {"text": last.action or last.content or "", "trajectory": trajectory}


def _row(number: int, row: _Row, keep: Collection[str], of_row: _OfRow) -> Line:
    """What is to be scored, the id and the kept keys of a JSON object, or what is wrong with it."""
    keys = ROW_KEYS if of_row is _text_row else TRAJECTORY_KEYS
    unknown = next((key for key in row if key not in keys and key not in keep), None)
    id = None if _why_no_id(row) else row.get("id")
    try:
        if row.repeated is not None:
            raise InputError(f"names the key {row.repeated!r} twice")
        if unknown is not None:
            raise InputError(
                f"unknown key {unknown!r}; known are {', '.join(dict.fromkeys((*keys, *keep)))}"
            )
        for key in row:
            if why := _unusable(row[key]):
                raise InputError(f"{key!r} {why}")
        if why := _why_no_id(row):
            raise InputError(why)
        found = of_row(row)
    except InputError as error:
        return Line(number, id=id, error=str(error), unknown_key=unknown)
    except RecursionError:
        return Line(number, id=id, error="nested too deeply")
    return Line(number, id=id, kept={key: row[key] for key in keep if key in row}, **found)


def _why_no_id(row: _Row) -> str | None:
    value = row.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        return f"'id' must be a string or a number, found {_kind(value)}"
    return None if (why := _unusable(value)) is None else f"'id' {why}"


def _unusable(value: Any) -> str | None:
    """Why JSON cannot hold a value, or UTF-8 a string in it; None if they can."""
    if isinstance(value, str):
        found = lone_surrogate(value)
        return None if found is None else f"holds a lone surrogate {found}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"holds {value}, which is no number of JSON; write null"
    if isinstance(value, _Row) and value.repeated is not None:
        return f"names the key {value.repeated!r} twice"
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next((why for each in value if (why := _unusable(each)) is not None), None)
    return None


def _decode(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from None


def _row_of(pairs: list[tuple[str, Any]]) -> _Row:
    row = _Row(pairs)
    row.repeated = repeated(pairs)
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_row_of)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return next((name for kind, name in _KINDS.items() if isinstance(value, kind)), "a number")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
