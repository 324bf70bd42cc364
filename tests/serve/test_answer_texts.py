"""What of an upstream's answer is text, whatever key it stands under."""

from typing import Any

import pytest

from siren_serve.proxy.texts import texts_of


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
