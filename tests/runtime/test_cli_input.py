"""Reading texts from a stream: every line once, as it arrives, in bounded memory."""

import io
import json
import tracemalloc
from collections.abc import Sequence
from typing import Any, BinaryIO

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


def _read(data: bytes, format: InputFormat = "auto", keep: Sequence[str] = ()) -> list[Line]:
    return [line for group in read_texts(io.BytesIO(data), format, keep) for line in group]


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
        ({"text": "a", "prompt": None}, "a"),
    ],
)
def test_a_json_row_has_a_text_or_a_prompt_and_response(row: dict, text: str) -> None:
    pair = None if row.get("text") is not None else (row.get("prompt"), row.get("response"))
    assert _read(json.dumps(row).encode()) == [Line(1, text, pair=pair)]


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
        (b'{"text": "a\\ud800b"}', "'text' holds a lone surrogate U+D800 at position 1"),
        (b'{"text": "a", "id": "\\udfff"}', "'id' holds a lone surrogate U+DFFF"),
        (b'{"text": "a", "id": NaN}', "'id' holds nan"),
        (b'{"text": "a", "id": 1e400}', "'id' holds inf"),
        (b'{"text": "a", "id": true}', "'id' must be a string or a number, found true or false"),
        (b'{"text": "a", "text": "b"}', "names the key 'text' twice"),
        (b'{"promt": "a", "response": "b"}', "unknown key 'promt'; known are text, prompt"),
        (b'{"text": "a", "label": NaN}', "unknown key 'label'"),
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


@pytest.mark.parametrize("value", [1, -0.5, True, None, "\u00fc", [], {"x": [{"y": 2**70}]}])
def test_a_key_that_is_named_is_kept_as_it_is(value: Any) -> None:
    row = {"text": "a", "label": value}
    (line,) = _read(json.dumps(row).encode(), keep=["label", "split"])
    assert line == Line(1, "a", kept={"label": value})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"NaN", "'label' holds nan"),
        (b'{"x": [-Infinity]}', "'label' holds -inf"),
        (b'[{"\\ud800": 1}]', "'label' holds a lone surrogate U+D800"),
        (b"[" * 900 + b"]" * 900, ""),
    ],
)
def test_what_json_cannot_hold_is_an_error_that_names_the_key(value: bytes, reason: str) -> None:
    data = b'{"text": "a", "id": 7, "label": ' + value + b"}"
    bad, good = _read(data + b'\n{"text": "fine"}', keep=["label"])
    assert reason in str(bad.error)
    assert (bad.id, good.text) == (7, "fine")


def test_the_elements_of_an_array_are_rows() -> None:
    rows = [{"text": "a", "id": 1}, "b", {"prompt": "c", "response": "d"}, {"text": 1}, 3, None]
    for data in (json.dumps(rows), json.dumps(rows, indent=2), "\n" + json.dumps(rows) + "\n"):
        for format in ("auto", "jsonl"):
            lines = _read(data.encode(), format)
            assert [(line.number, line.text) for line in lines] == [
                *((1, "a"), (2, "b"), (3, "c\nd"), (4, None), (5, None), (6, None))
            ]
            assert lines[0].id == 1
    assert lines[4].error == "expected an object or a string, found a number"
    assert _read(b"[]") == []


NO_ARRAYS = [
    *('["a note"]: see below', '["a note"', '["a", "b"] and more', '["a" "b"]', '[{"text": "a"}}'),
    *("[INST] a", "[1] a footnote", "[a]", "[] a list", "[", "[]", "[\f", "\f[", '["\\x"]'),
    *("[" * 100_000, '[{"text":' * 100_000),
]


@pytest.mark.parametrize("first", NO_ARRAYS)
def test_a_first_line_that_only_looks_like_an_array_stops_no_monitor(first: str) -> None:
    pipe = _pipe(first.encode() + b"\n", b"hello\n", b'"world"\n')
    groups = [[(line.number, line.text) for line in group] for group in read_texts(pipe, "auto")]
    said = [(2, "hello"), (3, '"world"')]
    assert [line for group in groups for line in group] == [(1, first), *said]
    assert groups[-2:] == [said[1:], []]  # what came before is given before more is read
    bad, good = _read(f'{first}\n{{"text": "a"}}'.encode(), "jsonl")
    assert (bad.number, bad.text, good) == (1, None, Line(2, "a"))


@pytest.mark.parametrize("data", [b"[INST] a", b"[1] a footnote", b"[a]", b"[] a list", b'["a"'])
def test_only_what_is_an_array_of_rows_to_its_end_is_one(data: bytes) -> None:
    assert _read(data) == _read(data, "lines") == [Line(1, data.decode())]


def test_elements_are_given_as_soon_as_each_is_complete() -> None:
    groups = read_texts(_pipe(b"[\n", b'"a",\n{"text":\n', b' "b"},\n', b'"c"]\n'), "auto")
    texts = [[(line.number, line.text) for line in group] for group in groups if group]
    assert texts == [[(1, "a")], [(2, "b")], [(3, "c")]]


@pytest.mark.parametrize(
    ("rest", "why", "lines"),
    [
        ("", "its end is missing", []),
        ("\nhello", "not JSON: Expecting value", [(4, "hello")]),
        ('\n"c" hello', "not JSON: Expecting ',' delimiter", [(4, '"c" hello')]),
        ('\n"c"\n"d"]', "not JSON: Expecting ',' delimiter", [(4, '"c"'), (5, '"d"]')]),
        ('\n"c', "not JSON: Invalid control character at", [(4, '"c')]),
        ("\n]", "not JSON: Expecting value", [(4, "]")]),
        ("\n" + "9" * 5000, "not JSON: Exceeds", [(4, "9" * 5000)]),
        (' {"text":\n\nhello', "not JSON: Expecting value", [(3, ' {"text":'), (5, "hello")]),
    ],
)
def test_where_an_array_breaks_off_the_rest_is_read_by_lines(
    rest: str, why: str, lines: list[tuple[int, str]]
) -> None:
    first, second, broken, *after = _read(f'[\n"a",\n"b",{rest}'.encode())
    assert [(line.number, line.text) for line in (first, second)] == [(1, "a"), (2, "b")]
    assert broken.number == 3
    assert f"breaks off ({why}" in str(broken.error)
    found = [(line.number, line.text or line.error) for line in after]
    if lines and lines[0][1].lstrip().startswith("{"):  # then the lines are JSON
        assert [number for number, _ in found] == [number for number, _ in lines]
        assert all("not JSON" in str(why) for _, why in found)
    else:
        assert found == lines


def test_what_stands_behind_the_end_of_an_array_is_read_by_lines() -> None:
    element, broken, line = _read(b'["a note"]\nsee below\n')
    assert (element.text, line) == ("a note", Line(2, "see below"))
    assert "breaks off (more stands behind its end)" in str(broken.error)


PARTS = st.sampled_from(["[", "]", ",", '"{}",', '"{}"', "{}", '{{"text": "{}"}}', " ", "\r", "\n"])


@given(st.lists(PARTS, max_size=20), st.sampled_from(["auto", "jsonl"]), st.data())
def test_no_text_of_what_may_be_an_array_is_lost_however_it_arrives(
    parts: list[str], format: InputFormat, data: st.DataObject
) -> None:
    words = [f"w{number}w" for number in range(len(parts))]
    content = "[" + "".join(p.format(word) for p, word in zip(parts, words, strict=True))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    chunks = [content[i:j].encode() for i, j in zip([0, *cuts], [*cuts, None], strict=True)]
    read = [line for group in read_texts(_pipe(*chunks), format) for line in group]
    assert read == _read(content.encode(), format)
    lines = content.split("\n")
    read = [line for line in read if "breaks off" not in str(line.error)]
    found = [lines[line.number - 1] if line.text is None else line.text for line in read]
    assert all(any(word in text for text in found) for word in words if word in content)


def test_an_array_of_any_length_is_read_in_bounded_memory() -> None:
    block = b'"' + b"x" * ((1 << 20) - 8) + b'",\n'
    tracemalloc.start()
    groups = read_texts(_pipe(b"[\n", *[block] * 100, b'"last"]'), "auto")
    count = sum(len(group) for group in groups)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 101
    assert peak < MAX_LINE_BYTES


def test_an_element_without_end_is_read_by_lines_in_bounded_memory() -> None:
    block = b'"' + b"x" * ((1 << 20) - 8) + b'",\n'
    tracemalloc.start()
    groups = read_texts(_pipe(b'["a", {"text": [\n', *[block] * 100, b"last"), "auto")
    numbers = [(line.number, line.error) for group in groups for line in group]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [number for number, _ in numbers] == [1, 2, *range(1, 103)]
    assert f"an element is longer than {MAX_LINE_BYTES} characters" in str(numbers[1][1])
    assert peak < 8 * MAX_LINE_BYTES


def test_an_array_in_one_line_that_is_too_long_names_the_way_out() -> None:
    (line,) = _read(b'["' + b"x" * MAX_LINE_BYTES + b'"]')
    assert f"longer than {MAX_LINE_BYTES} bytes; write an element a line" in str(line.error)
    text, broken, long, last = _read(b'["a",\n"' + b"x" * MAX_LINE_BYTES + b'",\nlast')
    assert (text.text, long.number, last.number) == ("a", 2, 3)
    assert "its end is missing" in str(broken.error)


def test_a_line_that_is_not_utf8_is_reported() -> None:
    assert _read(b"a\nb\xff\nc")[1] == Line(2, error="not UTF-8: byte 1 is 0xff")
    bad, good = _read(b'["b\xff",\n"c"]')
    assert "holds a lone surrogate U+DCFF at position 1" in str(bad.error)
    assert good == Line(2, "c")


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
