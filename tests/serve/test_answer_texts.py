"""What of an upstream's answer is text, whatever key it stands under."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren_serve.escapes import Unescaping, unescaped
from siren_serve.proxy.policy import in_parts
from siren_serve.proxy.texts import Joined, text_of, texts_of, without_alternatives


@pytest.mark.parametrize("key", ["id", "type", "role", "finish_reason", "native_finish_reason"])
def test_a_word_that_names_a_kind_is_no_text_and_a_sentence_under_its_key_is(key: str) -> None:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": "hello", key: "tool_calls-1"}}
    assert [text for _, text in texts_of(choice)] == ["hello"]
    for written in ("a sentence goes here", "word\nword", "x" * 129):
        found = [*texts_of({**choice, key: written})]
        assert found == [(("delta", "content"), "hello"), ((key,), written)]
    assert [*texts_of({key: None})] == []


def test_the_clients_own_stop_and_log_probabilities_are_known_text() -> None:
    known = {"stop_reason": "the end", "logprobs": {"content": [{"token": "hello"}]}}
    assert [text for _, text in texts_of({"text": "hello", **known})] == ["hello"]


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
    escaped = json.dumps(text).replace("\\\\", "").replace("\\n", "")
    plain = text.replace("\\", "").replace("\n", "")
    for sign, short in (("\r", "\\r"), ("\t", "\\t"), ("\b", "\\b"), ("\f", "\\f"), ('"', '\\"')):
        plain = plain.replace(sign, short)
    assert unescaped(escaped) == f'"{plain}"'


def test_arguments_of_calls_side_by_side_are_read_as_who_parses_them_reads_them() -> None:
    def choice(index: int, arguments: str) -> dict[str, Any]:
        call = {"index": index, "function": {"arguments": arguments}}
        return {"index": 0, "delta": {"tool_calls": [call]}}

    joined = Joined()
    pieces = [(0, '{"a": "\\u00'), (1, '["\\ud83d'), (0, "6bill\\"), (1, '\\ude00"]'), (1, "\\")]
    added = [joined.add(choice(*piece)) for piece in pieces]
    assert added == ['{"a": "', '\n["', "\nkill", '\n\U0001f600"]', ""]
    assert text_of(choice(0, '"\\u006b\\ud83d"')) == '"k\\ud83d"'
    assert text_of(choice(0, '"\\u006b\\u00')) == '"k'
    assert text_of({"delta": {"content": "\\u006b"}}) == "\\u006b"


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
