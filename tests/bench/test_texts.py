"""Benchmark texts have the number of tokens that they are said to have."""

import pytest
from tokenizers import Tokenizer

from siren_bench.subjects.texts import texts_of
from siren_runtime import InputError
from siren_runtime.text.rules import clean


@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "bert"])
def test_texts_have_exactly_the_tokens_asked_for_after_cleaning(backbone_folder, name):
    tokenizer_json = (backbone_folder(name) / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for tokens, text in texts_of(tokenizer_json, (3, 8, 32, 100, 512)).items():
        assert clean(text) == text
        assert len(tokenizer.encode(text).ids) == tokens


def test_fewer_tokens_than_the_special_ones_are_refused(backbone_folder):
    tokenizer_json = (backbone_folder("bert") / "tokenizer.json").read_bytes()
    with pytest.raises(InputError, match="no text of 1 tokens"):
        texts_of(tokenizer_json, [1])
