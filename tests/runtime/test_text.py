"""Text rules: what is tokenized is what llm-siren would tokenize."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from siren_guard.siren_guard import _join_prompt_response, _to_raw_text

from siren_runtime import InputError
from siren_runtime.text.rules import _CHAT_MARKERS, clean, join, one_text
from texts import TEXTS

_PIECES = st.one_of(
    st.sampled_from(
        [*_CHAT_MARKERS, " ", "\t", "\n", "\n\n\n", "\r\n", "\u00a0", "\u2028", "\x1c", "\0"]
    ),
    st.sampled_from(["<|", "|>", "[", "<s", "<<SYS", "/INST]", "<|im_", "start|>"]),
    st.text(max_size=8),
)
TEXT = st.lists(_PIECES, max_size=12).map("".join)


@given(TEXT)
@example("")
@example("<|im_<s>start|>")
def test_clean_is_llm_sirens(text: str) -> None:
    assert clean(text) == (_to_raw_text(text) or " ")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
def test_clean_is_llm_sirens_on_the_built_in_texts(text: str) -> None:
    assert clean(text) == (_to_raw_text(text) or " ")


@given(st.none() | TEXT, st.none() | TEXT)
def test_join_is_llm_sirens(prompt: str | None, response: str | None) -> None:
    assert join(prompt, response) == _join_prompt_response(prompt, response)


@given(TEXT)
def test_clean_is_never_empty(text: str) -> None:
    assert clean(text)


@given(st.text(), st.characters(categories=["Cs"]), st.text())
def test_a_lone_surrogate_is_refused_with_its_position(
    before: str, surrogate: str, after: str
) -> None:
    with pytest.raises(InputError, match=f"U\\+{ord(surrogate):04X} at position {len(before)};"):
        clean(before + surrogate + after)


@pytest.mark.parametrize("value", [None, b"bytes", 7, ["list"]])
def test_only_a_str_is_a_text(value: object) -> None:
    with pytest.raises(InputError, match=type(value).__name__):
        clean(value)  # type: ignore[arg-type]


@given(TEXT, st.none() | TEXT, st.none() | TEXT)
def test_one_text_takes_a_text_or_its_parts(
    text: str, prompt: str | None, response: str | None
) -> None:
    assert one_text(text, None, None) == text
    if prompt is None and response is None:
        with pytest.raises(InputError, match="nothing to score"):
            one_text(None, None, None)
    else:
        assert one_text(None, prompt, response) == join(prompt, response)
        with pytest.raises(InputError, match="not both"):
            one_text(text, prompt, response)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((1, None, None), "text"), ((None, b"", None), "prompt"), ((None, "a", 0), "response")],
)
def test_one_text_names_the_part_that_is_not_a_str(arguments: tuple, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be a str"):
        one_text(*arguments)
