"""A growing text as tokens: what counts, and what is forgotten."""

import pytest
import tokenizers
import tokenizers.processors
from hypothesis import given, settings
from hypothesis import strategies as st

from guards import load_guard
from siren_runtime import InputError
from siren_runtime.streaming.growing_text import StreamText, StreamTokens
from siren_runtime.text.rules import clean
from siren_runtime.text.tokenizer import Tokenizer
from texts import CORPUS
from tiny_tokenizers import TOKENIZERS


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer(bundle / "tokenizer.json", 32)


def test_tokens_are_those_of_the_cleaned_whole(tokenizer):
    text = StreamText(tokenizer, "say  it", False)
    assert text.append("") == text.tokens()
    assert text.tokens().text == "say it"
    text.append(" now<|im_")
    assert text.tokens().text == "say it\n now<|im_"
    tokens = text.append("end|>  ")
    assert tokens.text == "say it\n now"
    assert tokens.ids == tokenizer.encode("say it\n now").ids
    assert tokens.context == 0


@pytest.mark.parametrize("prompt", ["say  it", "say it \n", "\tsay it<s>"])
def test_the_context_ends_where_the_response_begins(tokenizer, prompt):
    text = StreamText(tokenizer, prompt, True)
    assert text.append("  ").context == 0
    tokens = text.append("now")
    start, _ = tokens.offsets[tokens.context]
    assert tokens.text[start:] == "now"


@pytest.mark.parametrize("prompt", [None, "", "<s>"])
def test_without_a_prompt_all_but_special_tokens_in_front_respond(tokenizer, prompt):
    assert StreamText(tokenizer, prompt, True).append("now").context in (0, 1)


def test_dropping_keeps_the_tail_its_offsets_and_the_white_space_that_may_follow(tokenizer):
    text = StreamText(tokenizer, None, False)
    tokens = text.append("one two  \n")
    cut = next(i for i, (start, _) in enumerate(tokens.offsets) if start == 4)
    text.drop(cut, tokens)
    tokens = text.append("three")
    assert (tokens.text, tokens.start) == ("two \nthree", 4)
    assert tokens.context == 1  # the start token, which counted once
    assert tokens.offsets[1] == (4, 5)


@settings(deadline=None)
@given(st.text(alphabet="ab \n\t<s>", min_size=1, max_size=60), st.data())
def test_what_is_held_stands_where_it_stood_as_given(tokenizer, fed, data):
    """A token's text is found at its place in all that was given, however much was dropped."""
    text, whole = StreamText(tokenizer, "a  <s> b", False), "a  <s> b\n" + fed
    cut = data.draw(st.integers(0, len(fed)))
    tokens = text.append(fed[:cut])
    if len(tokens.ids) > 3:
        text.drop(data.draw(st.integers(1, len(tokens.ids) - 2)), tokens)
        tokens = text.tokens()
        assert clean("a  <s> b\n" + fed[:cut])[tokens.start :] == tokens.text
    tokens = text.append(fed[cut:])
    for place, character in enumerate(tokens.text):
        first, end = tokens.span_in_given((place, place + 1))
        assert 0 <= first < end <= len(whole)
        if not character.isspace():
            assert whole[first] == character
    assert clean(whole).endswith(tokens.text.strip())


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "bert"])
def test_tokens_stand_where_their_text_does_however_often_text_slid_out(name, tmp_path):
    """Also where a token holds the space before it, which goes with what slides out."""
    TOKENIZERS[name](tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64)
    text, whole = StreamText(tokenizer, None, False), ""
    for piece in CORPUS:
        tokens = text.append(piece + " ")
        whole += piece + " "
        text.drop(len(tokens.ids) // 2, tokens)
        tokens, cleaned = text.tokens(), clean(whole)
        for start, end in tokens.offsets:
            assert cleaned[start:end] == tokens.text[start - tokens.start : end - tokens.start]
        assert cleaned.endswith(tokens.text)


def test_token_ids_follow_the_prompt(tokenizer):
    tokens = StreamTokens(tokenizer, "hi", True).append([7, 8])
    prompt = tokenizer.encode("hi\n").ids
    assert tokens.ids == [*prompt, 7, 8]
    assert tokens.context == len(prompt)
    for wrong in ([-1], ["7"], [1.5]):
        with pytest.raises(InputError, match="token id"):
            StreamTokens(tokenizer, None, False).append(wrong)
    with pytest.raises(InputError, match="no token"):
        StreamTokens(tokenizer, None, False).append([])


def test_token_ids_do_not_follow_a_prompt_that_special_tokens_end(bundle, tmp_path):
    raw = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    ends = [("<start>", raw.token_to_id("<start>"))]
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <start>", special_tokens=ends
    )
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 32)
    with pytest.raises(InputError, match="token ids cannot follow a prompt"):
        StreamTokens(tokenizer, "hi", False)
    assert StreamTokens(tokenizer, None, False).append([7]).ids == [7]


def test_the_part_that_a_truncated_score_is_of_stands_as_given(bundle):
    """Of a stream that is read anew at each feed, whose older half went."""
    pieces = [f"{number}  <s> " for number in range(40)]
    with pytest.warns(UserWarning, match="re-encodes"):
        stream = load_guard(bundle).stream("say  it")
    for piece in pieces:
        result = stream.feed(piece)
    whole = "say  it\n" + "".join(pieces)
    assert result.truncated
    start, end = result.span
    held = " ".join(str(number) for number in range(40))
    assert 0 < start < end
    assert whole[:end] == whole.rstrip(" ").removesuffix("<s>").rstrip(" ")
    assert held.endswith(clean(whole[start:end]))
