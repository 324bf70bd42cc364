"""How byte-level vocabularies split a text before merging, by the name that a header has for it.

The names and their expressions are llama.cpp's (`llama_vocab::impl::load`), each checked against
the tokenizer.json that models of it are published with. A name that is not here is refused: with
another split the tokens would be others.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"

_LLAMA3 = rf"{_ENGLISH}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_ENGLISH}|{_LETTERS}|\p{{N}}|{_REST}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenization:
    """What the name of a pre-tokenizer stands for.

    Attributes:
        split: an expression of the pieces; None for GPT-2's own.
        single_digits: each digit is a piece before anything else is split.
        whole_words: a piece that is a token is not merged anew.
        begins: whether a text begins with the BOS token where the header does not say.
    """

    split: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    begins: bool = False

    def make(self) -> PreTokenizer:
        """The pre-tokenizer, spelling bytes as byte-level vocabularies do."""
        if self.split is not None:
            pieces = Split(Regex(self.split), behavior="isolated")
            return Sequence([pieces, ByteLevel(add_prefix_space=False, use_regex=False)])
        gpt2 = ByteLevel(add_prefix_space=False)
        return Sequence([Digits(individual_digits=True), gpt2]) if self.single_digits else gpt2


_OF_LLAMA3 = PreTokenization(_LLAMA3, whole_words=True, begins=True)
PRE_TOKENIZATIONS = {
    "gpt-2": PreTokenization(),
    "smollm": PreTokenization(single_digits=True),
    "llama-bpe": _OF_LLAMA3,
    "llama3": _OF_LLAMA3,
    "llama-v3": _OF_LLAMA3,
    "tekken": PreTokenization(_TEKKEN, whole_words=True, begins=True),
    "qwen2": PreTokenization(_QWEN2),
}
