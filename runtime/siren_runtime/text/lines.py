"""Read the texts to score from a stream: JSON objects or plain lines, as they arrive."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

import msgspec

from siren_runtime.errors import InputError

from .rules import one_text

InputFormat = Literal["auto", "jsonl", "lines"]

MAX_LINE_BYTES = 16 << 20
_CHUNK = 1 << 20


class _Row(msgspec.Struct):
    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    id: str | int | float | None = None


@dataclass(frozen=True)
class Line:
    """One line of input: its text, or why it has none."""

    number: int
    text: str | None = None
    id: str | int | float | None = None
    error: str | None = None


def read_texts(stream: BinaryIO, format: InputFormat) -> Iterator[list[Line]]:
    """Yield the lines of `stream` in groups, each what one read brought; blank lines have none.

    A pipe's read returns what has been written so far, so nothing waits for more input, and
    what arrives during scoring makes the next, larger group. "auto" takes the stream for jsonl
    if its first text starts with "{". Memory is bounded: a line of over `MAX_LINE_BYTES` is
    dropped and reported.
    """
    number = 0
    for chunk in _split(stream):
        group = []
        for data in chunk:
            number += 1
            data = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
            if data.isspace() or not data:
                continue
            if format == "auto":
                format = "jsonl" if data.lstrip().startswith(b"{") else "lines"
            group.append(_parse(number, data, format))
        yield group


def _split(stream: BinaryIO) -> Iterator[list[bytes]]:
    rest = b""
    while chunk := stream.read1(_CHUNK):  # type: ignore[attr-defined]  # buffered readers have it
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[: MAX_LINE_BYTES + 1]
        yield lines
    yield [rest]


def _parse(number: int, data: bytes, format: InputFormat) -> Line:
    if len(data) > MAX_LINE_BYTES:
        return Line(number, error=f"longer than {MAX_LINE_BYTES} bytes")
    try:
        if format == "lines":
            return Line(number, data.decode("utf-8").removesuffix("\r"))
        row = msgspec.json.decode(data, type=_Row)
        return Line(number, one_text(row.text, row.prompt, row.response), row.id)
    except UnicodeDecodeError as error:
        return Line(number, error=f"not UTF-8: byte {error.start} is 0x{data[error.start]:02x}")
    except (msgspec.ValidationError, InputError) as error:
        return Line(number, error=str(error))
    except (msgspec.DecodeError, RecursionError) as error:
        return Line(number, error=f"not JSON: {error}")
