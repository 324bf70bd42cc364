"""Reading texts from a stream: every line once, as it arrives, in bounded memory."""

import io
import json
import tracemalloc
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren_runtime.text.lines import MAX_LINE_BYTES, InputFormat, Line, read_texts

TEXT_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=9)


class _Chunks(io.RawIOBase):
    """A pipe: each read returns what one write brought."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = iter([chunk for chunk in chunks if chunk])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = next(self._chunks, b"")
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _pipe(*chunks: bytes) -> BinaryIO:
    return io.BufferedReader(_Chunks([*chunks]))


def _read(data: bytes, format: InputFormat = "auto") -> list[Line]:
    return [line for group in read_texts(io.BytesIO(data), format) for line in group]


@given(st.lists(TEXT_LINE), st.data())
def test_lines_are_the_same_however_they_arrive(lines: list[str], data: st.DataObject) -> None:
    content = "\n".join(lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    chunks = [content[i:j] for i, j in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    read = [line for group in read_texts(_pipe(*chunks), "lines") for line in group]
    assert [(line.number, line.text) for line in read if line.error is None] == [
        (number, line.removeprefix("\ufeff") if number == 1 else line)
        for number, line in enumerate(lines, start=1)
        if line.removeprefix("\ufeff" if number == 1 else "").encode().strip()
    ]


@given(st.lists(st.fixed_dictionaries({"text": st.text(st.characters(codec="utf-8"))})))
def test_json_lines_give_their_texts(rows: list[dict[str, str]]) -> None:
    data = "\n".join(json.dumps(row) for row in rows).encode()
    assert [line.text for line in _read(data)] == [row["text"] for row in rows]


@given(st.binary(max_size=100), st.sampled_from(["auto", "jsonl", "lines"]))
def test_arbitrary_bytes_give_lines_with_a_text_or_an_error(
    data: bytes, format: InputFormat
) -> None:
    for line in _read(data, format):
        assert (line.text is None) != (line.error is None)


def test_what_has_arrived_is_given_before_more_is_read() -> None:
    groups = read_texts(_pipe(b"one\ntwo\nthr", b"ee\n", b"four"), "auto")
    texts = [[line.text for line in group] for group in groups if group]
    assert texts == [["one", "two"], ["three"], ["four"]]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "a"}, "a"),
        ({"text": ""}, ""),
        ({"prompt": "a", "response": "b"}, "a\nb"),
        ({"prompt": "a", "response": None}, "a"),
        ({"response": "b"}, "b"),
        ({"text": "a", "prompt": None, "label": 1, "nested": {"x": []}}, "a"),
    ],
)
def test_a_json_row_has_a_text_or_a_prompt_and_response(row: dict, text: str) -> None:
    assert _read(json.dumps(row).encode()) == [Line(1, text)]


@pytest.mark.parametrize("name", ["a", 7, 0, 1.5, "", "ü"])
def test_a_json_row_keeps_its_id(name: object) -> None:
    assert _read(json.dumps({"text": "a", "id": name}).encode())[0].id == name


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"text": "a"', "not JSON"),
        (b'{"text": 1}', "text"),
        (b'{"text": "a", "id": []}', "id"),
        (b'{"prompt": ["a"]}', "prompt"),
        (b"[1]", "object"),
        (b"plain", "not JSON"),
        (b"{}", "nothing to score"),
        (b'{"prompt": null}', "nothing to score"),
        (b'{"text": "a", "prompt": "b"}', "not both"),
        (b'{"text": "\\ud800"}', "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text":' + b"[" * 100_000, ""),
    ],
)
def test_a_bad_json_row_is_reported_and_the_next_is_read(data: bytes, reason: str) -> None:
    bad, good = _read(data + b'\n{"text": "fine"}', "jsonl")
    assert bad.number == 1
    assert bad.text is None
    assert reason in str(bad.error)
    assert good == Line(2, "fine")


def test_a_line_that_is_not_utf8_is_reported() -> None:
    assert _read(b"a\nb\xff\nc")[1] == Line(2, error="not UTF-8: byte 1 is 0xff")


def test_blank_lines_hold_no_text_but_count() -> None:
    assert _read(b"\n  \na\r\n\r\nb\n\n") == [Line(3, "a"), Line(5, "b")]


def test_a_byte_order_mark_is_no_text() -> None:
    assert _read('\ufeff{"text": "a"}'.encode()) == [Line(1, "a")]


def test_the_first_text_tells_json_from_plain_lines() -> None:
    assert [line.text for line in _read(b'\nplain\n{"text": "a"}')] == ["plain", '{"text": "a"}']
    assert [line.text for line in _read(b'{"text": "a"}')] == ["a"]
    assert [line.text for line in _read(b'{"text": "a"}', "lines")] == ['{"text": "a"}']


def test_a_line_without_end_is_dropped_in_bounded_memory() -> None:
    block = b"x" * (1 << 20)
    stream = _pipe(b"first\n", *[block] * 100, b"\nlast\n")
    tracemalloc.start()
    lines = [line for group in read_texts(stream, "auto") for line in group]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines == [
        Line(1, "first"),
        Line(2, error=f"longer than {MAX_LINE_BYTES} bytes"),
        Line(3, "last"),
    ]
    assert peak < 5 * MAX_LINE_BYTES
