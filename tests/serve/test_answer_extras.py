"""What an answer has beside its choices, for who lets it out as it came."""

from typing import Any

import pytest

from siren_serve.errors import RefusedRequest
from siren_serve.proxy.extras import Extras, without_texts
from siren_serve.proxy.texts import check_alternatives

CHOICES = {"choices": [{"message": {"content": "of a choice"}}]}
HARMLESS: dict[str, Any] = {
    "id": "chatcmpl-1",
    "model": "small",
    "service_tier": "default",
    "system_fingerprint": None,
    "usage": {"total_tokens": 3, "prompt_tokens_details": {"cached_tokens": None}},
}


def read(*answers: dict[str, Any]) -> dict[int, str]:
    """What the streams read of an answer's chunks."""
    extras, found = Extras(), dict[int, str]()
    for answer in answers:
        for stream, text in extras.add(answer).items():
            found[stream] = found.get(stream, "") + text
    return found


def test_of_labels_and_numbers_nothing_is_read_and_all_goes_out() -> None:
    assert read({**HARMLESS, **CHOICES}) == {}
    assert without_texts({**HARMLESS, **CHOICES}) == HARMLESS


@pytest.mark.parametrize(
    ("beside", "text"),
    [
        ({"citations": ["one of them", "another"]}, "one of them\nanother"),
        ({"id": "a sentence of five words"}, "a sentence of five words"),
        ({"usage": {"note": "some words"}}, "some words"),
        ({"usage": {"tier": "batch", "total_tokens": 3}}, None),
        ({"vertex_ai_safety_ratings": [[{"category": "HARM_CATEGORY_HARASSMENT"}]]}, None),
        ({"vertex_ai_safety_ratings": [[{"category": "some words"}]]}, "some words"),
        ({"content_filter_results": {"why": "some words"}}, "some words"),
        ({"a key of many words": 1}, "a key of many words"),
        ({"trace": None}, None),
    ],
)
def test_what_else_stands_there_is_text(beside: dict[str, Any], text: str | None) -> None:
    assert read({**HARMLESS, **CHOICES, **beside}) == ({} if text is None else {0: text})


def test_of_chunks_what_is_said_again_is_read_once_and_what_grows_as_one() -> None:
    assert read(*[{"citations": ["one", "two"]}] * 3) == {0: "one\ntwo"}
    assert read({"thoughts": "a bo"}, {"thoughts": "mb"}) == {0: "a bomb"}
    growing = [{"citations": ["one", "two", "three"][:count]} for count in (1, 2, 3)]
    assert read(*growing) == {0: "one\ntwo\nthree"}


def test_texts_that_take_turns_without_end_are_refused() -> None:
    extras = Extras(most=2)
    for name, text in (("one", "a"), ("two", "b"), ("one", "c"), ("three", "d")):
        extras.add({name: text})
    with pytest.raises(RefusedRequest, match="more than 2 texts at once"):
        extras.add({"two": "e"})


def test_a_picture_beside_the_choices_is_refused() -> None:
    with pytest.raises(RefusedRequest, match=r"beside\.images, which is no text"):
        read({"images": [{"image_url": {"url": "https://a"}}]})


OWN: dict[str, Any] = {"token": "a", "logprob": -0.5, "bytes": [97]}


@pytest.mark.parametrize(
    ("logprobs", "passes"),
    [
        (None, True),
        ({"content": [OWN, {**OWN, "top_logprobs": []}], "refusal": None}, True),
        ({"tokens": ["a"], "token_logprobs": [-0.5], "token_ids": [7], "top_logprobs": None}, True),
        ({"tokens": ["a"], "top_logprobs": [None, {}]}, True),
        ({"content": [{**OWN, "top_logprobs": [OWN]}]}, False),
        ({"refusal": [{**OWN, "top_logprobs": [OWN]}]}, False),
        ({"content": [{**OWN, "candidates": {"b": -1.0}}]}, False),
        ({"tokens": ["a"], "top_logprobs": [None, {"b": -1.0}]}, False),
        ([{**OWN, "note": "b"}], False),
    ],
)
def test_log_probabilities_pass_of_the_answers_own_tokens_alone(
    logprobs: Any, passes: bool
) -> None:
    if passes:
        check_alternatives({"logprobs": logprobs, "prompt_logprobs": None})
        return
    with pytest.raises(RefusedRequest, match="of other tokens than its own"):
        check_alternatives({"logprobs": logprobs})


def test_log_probabilities_of_the_prompt_are_refused() -> None:
    with pytest.raises(RefusedRequest, match="of other tokens than its own"):
        check_alternatives({"prompt_logprobs": [None, {"1": {"decoded_token": "b"}}]})
