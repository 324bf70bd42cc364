"""Texts of an exact number of tokens, and the small tokenizer of synthetic checkpoints."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from siren_runtime.errors import InputError

_END_OF_TEXT = "<|endoftext|>"
_PASSAGE = """\
The ferry leaves the harbour at seven, while the lamps along the quay are still lit and gulls walk
between the crates. A boy sells coffee from a cart and asks everyone the same question: have you
seen the new bridge? Nobody has, because it opens in spring. The captain reads the weather from a
sheet of paper, folds it twice, and writes the figures into a book that he has kept for thirty-one
years. Wind from the north-west, force four; visibility good; sea slight. Two engineers argue over
the price of a pump, and whether it is better to mend what they have or to order another. On the
upper deck a teacher counts her class, first in pairs and then again one by one, since yesterday
there was one child too many. Someone has left a radio on, and a voice explains how to prune an
apple tree: cut above a bud, never below, and only when the frost is over.
"""


def write_tokenizer(folder: Path, *, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE of about 500 tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_PASSAGE], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END_OF_TEXT,
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def texts_of(tokenizer_json: bytes, lengths: Iterable[int]) -> dict[int, str]:
    """Return plain English of each length in tokens, special tokens included.

    Cleaning leaves the texts as they are.

    Args:
        tokenizer_json: A tokenizer's file; its padding and truncation do not count.

    Raises:
        InputError: a length is below the special tokens plus one.
    """
    tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return {length: _text_of(tokenizer, length) for length in lengths}


def one_token_words(tokenizer_json: bytes, count: int) -> list[str]:
    """Return so many words, a space before each, each of which is one more token of their text.

    Args:
        tokenizer_json: As in `texts_of`.

    Raises:
        InputError: the tokenizer makes no such words.
    """
    tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text.strip()).ids)

    words: list[str] = []
    length = 0
    while len(words) < count:
        before = len(words)
        for word in _PASSAGE.split():
            longer = tokens(f"{''.join(words)} {word}")
            if not words or longer == length + 1:
                words.append(f" {word}")
                length = longer
        if len(words) in (before, 1):
            raise InputError("this tokenizer makes no words of one token each")
    return words[:count]


def _text_of(tokenizer: tokenizers.Tokenizer, length: int) -> str:
    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    passage = _PASSAGE.split()
    words: list[str] = []
    while count(" ".join([*words, word := passage[len(words) % len(passage)]])) <= length:
        words.append(word)
    # A word may be several tokens; a single letter is one nearly everywhere.
    for filler in ("a", "I", "1"):
        text = " ".join(words)
        while count(text) < length:
            text = f"{text} {filler}".strip()
        if count(text) == length:
            return text
    raise InputError(f"found no text of {length} tokens for this tokenizer; try more tokens")
