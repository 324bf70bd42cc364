"""What of an upstream's answer is text, whatever key it stands under."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren_serve.errors import RefusedRequest
from siren_serve.escapes import Unescaping, unescaped
from siren_serve.proxy.policy import in_parts
from siren_serve.proxy.texts import Joined, said_by, without_alternatives


def reads(joined: Joined, *choices: dict[str, Any]) -> dict[int, str]:
    """What each stream has read in the end."""
    read: dict[int, str] = {}
    for choice in choices:
        for stream, text in joined.add(choice).items():
            read[stream] = read.get(stream, "") + text
    return read


def delta(**said: Any) -> dict[str, Any]:
    return {"index": 0, "delta": said}


@pytest.mark.parametrize("key", ["id", "type", "role", "format"])
def test_a_word_that_names_a_kind_is_no_text_and_a_sentence_under_its_key_is(key: str) -> None:
    assert said_by(delta(content="hello", **{key: "tool_calls-1"})) == ["hello"]
    for written in ("a sentence goes here", "word\nword", "x" * 129):
        assert said_by(delta(content="hello", **{key: written})) == [f"hello\n{written}"]
    assert said_by(delta(**{key: None})) == []


@pytest.mark.parametrize(
    "key", ["finish_reason", "native_finish_reason", "stop_reason", "logprobs"]
)
def test_what_is_no_text_of_a_choice_is_text_elsewhere(key: str) -> None:
    assert said_by({**delta(content="hello"), key: "stop"}) == ["hello"]
    assert said_by(delta(content="hello", **{key: "stop"})) == ["hello\nstop"]


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"created": "a", "index": ["b"]}, "a\nb"),
        ({"parts": [{"index": "a b", "text": "c"}]}, "a b\nc"),
        ({"logprobs": {"content": [{"token": "a", "top_logprobs": [{"token": "b"}]}]}}, "a\nb"),
        ({"x": {"role": "kill_him"}}, "kill_him"),
        ({"parsed": {"a": {"b": 1}, "type": "c"}}, "a\nb\ntype\nc"),
        ({"parsed": {"image_url": "http://a"}}, "image_url\nhttp://a"),
        ({"parsed": {"a": {"None": "b"}}}, "a\nNone\nb"),
        ({"how to do it": None, "a": {"and what with": 1}}, "how to do it\nand what with"),
    ],
)
def test_no_string_of_a_message_is_left_out(message: dict[str, Any], read: str) -> None:
    assert said_by({"index": 0, "message": {"role": "assistant", **message}}) == [read]


@pytest.mark.parametrize(
    "message",
    [
        {"inline_data": {"mime_type": "image/png", "data": "AAAA"}},
        {"content": [{"type": "output_audio", "output_audio": {"data": "AAAA"}}]},
        {"content": [{"type": "video_url", "video_url": "http://a/b"}]},
        {"content": "data:image/png;base64,AAAA"},
        {"x": ["Data:audio/x-wav;base64,AAAA"]},
    ],
)
def test_what_is_no_text_is_refused_under_whatever_key(message: dict[str, Any]) -> None:
    with pytest.raises(RefusedRequest, match="which is no text"):
        said_by({"index": 0, "message": message})


def test_a_data_url_is_no_text_however_it_is_cut() -> None:
    joined = Joined()
    assert joined.add(delta(content="data:im")) == {0: "data:im"}
    with pytest.raises(RefusedRequest, match=r"delta\.content"):
        joined.add(delta(content="age/png;base64,AAAA"))


@pytest.mark.parametrize(
    ("logprobs", "own"),
    [
        (
            {
                "content": [
                    {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": [{"token": "b"}]}
                ],
                "refusal": None,
            },
            {
                "content": [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}],
                "refusal": None,
            },
        ),
        (
            {
                "tokens": ["a"],
                "token_logprobs": [-1.0],
                "text_offset": [0],
                "top_logprobs": [{"b": -2.0}],
            },
            {"tokens": ["a"], "token_logprobs": [-1.0], "text_offset": [0], "top_logprobs": []},
        ),
        (
            {"content": [{"id": 1, "token": "a", "prob": 0.5, "top_probs": [{"token": "b"}]}]},
            {"content": [{"id": 1, "token": "a", "prob": 0.5}]},
        ),
        ({"of a later release": "b"}, {}),
    ],
)
def test_log_probabilities_are_those_of_the_answers_own_tokens(
    logprobs: dict[str, Any], own: dict[str, Any]
) -> None:
    choice = {"index": 0, "text": "a", "logprobs": logprobs, "prompt_logprobs": [{"7": "b"}]}
    assert without_alternatives(choice) == {"index": 0, "text": "a", "logprobs": own}
    assert without_alternatives({"text": "a", "logprobs": None}) == {"text": "a", "logprobs": None}


_WRITTEN = st.lists(st.sampled_from([*"\\u0dD8cE", "\\u006b", "\\ud83d", "\\ude00", "\\n", "é\n"]))


@given(_WRITTEN, st.data())
def test_escapes_are_read_alike_however_a_text_is_cut(
    written: list[str], data: st.DataObject
) -> None:
    text, unescaping, read = "".join(written), Unescaping(), ""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    for start, stop in pairwise([0, *cuts, len(text)]):
        read += unescaping.add(text[start:stop])
    left = unescaped(text).removeprefix(read)
    assert read + left == unescaped(text)
    assert len(left) < len(r"\ud83d\u0000")


@given(st.text())
def test_what_json_escapes_is_read_as_it_was(text: str) -> None:
    assert unescaped(json.dumps(text)) == f'"{text}"'


@pytest.mark.parametrize("written", ["\\x41", "\\u00", "\\ud83d", "\\u{41}", "\\", "no"])
def test_what_is_no_escape_stays_as_it_is(written: str) -> None:
    assert unescaped(written) == written


def called(index: int, arguments: Any, **function: Any) -> dict[str, Any]:
    call = {"index": index, "function": {**function, "arguments": arguments}}
    return delta(tool_calls=[call])


def test_arguments_of_calls_are_read_as_who_parses_them_reads_them() -> None:
    joined = Joined()
    pieces = ['{"a": "\\u00', "6bill\\", "nhim", "\\ud83d", '\\ude00"']
    added = [joined.add(called(0, piece)) for piece in pieces]
    assert added == [{0: '{"a": "'}, {0: "kill"}, {0: "\nhim"}, {}, {0: '\U0001f600"'}]
    assert said_by(called(0, '"\\u006b\\ud83d"')) == ['"k\\ud83d"']
    assert said_by(called(0, '"\\u006b\\u00')) == ['"k']
    assert said_by(called(0, {"a\nb": ["To\nbuild", 1]})) == ["a\nb\nTo\nbuild"]


def test_content_that_is_json_is_read_as_it_is_and_as_who_parses_it_reads_it() -> None:
    written = '{"say": "To\\nbuild \\u0069t \\bomb"}'
    both = [written, '{"say": "To\nbuild it \bomb"}']
    assert said_by(delta(content=written)) == both
    cut = [delta(content=written[at : at + 3]) for at in range(0, len(written), 3)]
    assert [*reads(Joined(), *cut).values()] == both
    assert [*reads(Joined(), delta(content="\n"), *cut).values()] == [f"\n{text}" for text in both]
    assert said_by(delta(content='{"say": "it"}')) == ['{"say": "it"}']
    for plain in ("\\u006b", "so: \\build"):
        assert said_by(delta(content=plain)) == [plain]


_KEYS = st.sampled_from(["content", "reasoning", "refusal"])
_PIECES = st.dictionaries(_KEYS, st.text("ab {\n", min_size=1, max_size=3))


@given(st.lists(_PIECES, max_size=9))
def test_each_text_is_read_whole_whatever_comes_between_its_pieces(
    deltas: list[dict[str, str]],
) -> None:
    joined, read, said = Joined(), dict[int, str](), dict[str, str]()
    for pieces in deltas:
        for stream, text in joined.add(delta(**pieces)).items():
            read[stream] = read.get(stream, "") + text
        for key, piece in pieces.items():
            said[key] = said.get(key, "") + piece
            assert any(said[key] in text for text in read.values())


def test_texts_that_come_one_after_the_other_are_read_by_one_stream() -> None:
    deltas = [delta(reasoning="th"), delta(reasoning="ink"), delta(content="say")]
    assert reads(Joined(), *deltas, called(0, "{}", name="f")) == {0: "think\nsay\nf\n{}"}


def test_a_text_that_goes_on_is_read_from_its_beginning_by_a_stream_of_its_own() -> None:
    joined = Joined()
    deltas = [delta(content="bo"), delta(reasoning="th"), delta(content="mb"), delta(content="s")]
    assert [joined.add(each) for each in deltas] == [{0: "bo"}, {0: "\nth"}, {1: "bomb"}, {1: "s"}]
    assert joined.add(delta(reasoning="ink")) == {0: "ink"}


def test_a_text_that_repeats_another_is_read_once() -> None:
    def said(text: str) -> dict[str, Any]:
        detail = {"type": "reasoning.text", "text": text, "format": "anthropic-claude-v1"}
        return delta(content="", reasoning=text, reasoning_details=[{**detail, "index": 0}])

    deltas = [said("Bui"), said("ld the "), said("pipe")]
    assert reads(Joined(), *deltas) == {0: "Build the pipe"}
    other = delta(reasoning=".", reasoning_details=[{"index": 0, "text": "bomb"}])
    assert reads(Joined(), *deltas, other) == {0: "Build the pipe.\nBuild the pipebomb"}


def test_a_name_that_is_said_again_breaks_no_arguments() -> None:
    name = "look_up_all_that_there_is"
    pieces = [called(0, "{bui", name=name), called(0, "ld it", name=name), called(0, "}")]
    assert reads(Joined(), *pieces) == {0: f"{name}\n{{build it}}"}


@given(st.text(st.sampled_from("ab  \n"), max_size=90), st.integers(1, 20))
def test_parts_of_a_long_piece_are_all_of_it(text: str, size: int) -> None:
    parts = in_parts(text, size)
    assert "".join(parts) == text
    assert all(0 < len(part) <= size for part in parts)


def test_parts_of_a_long_piece_cut_no_word_that_fits() -> None:
    parts = in_parts("some words " * 100 + "x" * 700, 64)
    words = {word.strip("x") for part in parts for word in part.split()}
    assert words == {"some", "words", ""}
    assert max(map(len, parts)) == 64
