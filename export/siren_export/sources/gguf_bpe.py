"""Byte-pair encoding from a header's vocabulary: over bytes, or over characters with scores."""

import math
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, ByteLevel, Fuse, Replace, Strip
from tokenizers.decoders import Sequence as Decoders
from tokenizers.models import BPE
from tokenizers.normalizers import Replace as ReplaceText
from tokenizers.pre_tokenizers import ByteLevel as SplitBytes
from tokenizers.pre_tokenizers import Metaspace, Split

from siren_runtime.errors import CheckpointError

from .gguf_header import Header
from .gguf_pre_tokenizers import PreTokenization
from .gguf_vocabulary import Vocabulary

_PREFIX = "tokenizer.ggml"
_SPACE = "\u2581"  # how SentencePiece spells one
Merge = tuple[str, str]


def byte_level(
    header: Header, vocabulary: Vocabulary, pre_tokenization: PreTokenization
) -> Tokenizer:
    """BPE over bytes, by the header's merges (arXiv 1508.07909; GPT-2's spelling of bytes).

    Raises:
        CheckpointError: a merge is no pair of tokens, or a token spells no bytes.
    """
    tokens = [_spelled(vocabulary, index) for index in range(len(vocabulary.tokens))]
    model = BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=_header_merges(header),
        fuse_unk=False,
        ignore_merges=pre_tokenization.whole_words,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenization.make()
    tokenizer.decoder = ByteLevel()
    header.note(f"{_PREFIX}.scores")  # all alike where they are written
    return tokenizer


_ALPHABET = frozenset(SplitBytes.alphabet())


def _spelled(vocabulary: Vocabulary, index: int) -> str:
    """A token in the spelling of bytes, in which a few files have no all of theirs."""
    token = vocabulary.tokens[index]
    if vocabulary.matched_whole(index) or _ALPHABET.issuperset(token):
        return token
    pieces = SplitBytes(add_prefix_space=False, use_regex=False).pre_tokenize_str(token)
    return "".join(piece for piece, _ in pieces)


def _header_merges(header: Header) -> list[Merge]:
    merges = []
    for number, merge in enumerate(header.strings(f"{_PREFIX}.merges")):
        first, space, second = merge.partition(" ")
        if not first or not space or not second or " " in second:
            raise CheckpointError(
                f"{header.path}: {_PREFIX}.merges[{number}] is {merge[:80]!r}; expected two tokens "
                "with a space between them"
            )
        merges.append((first, second))
    return merges


def sentencepiece(
    header: Header, vocabulary: Vocabulary, *, prefix_space: bool, gemma: bool
) -> Tokenizer:
    """BPE over characters, by scores, that falls back on bytes (arXiv 1808.06226).

    Args:
        prefix_space: a text gets a space in front.
        gemma: the order of tokens stands for their scores, which Gemma's do not have, and runs of
            spaces are stored as they are.

    Raises:
        CheckpointError: a score is missing, or a byte has no token.
    """
    tokens = vocabulary.tokens
    if gemma:
        header.note(f"{_PREFIX}.scores")
        tokens = [_SPACE * len(t) if len(t) > 1 and not t.strip(" ") else t for t in tokens]
        scores: Sequence[float] = range(0, -len(tokens), -1)
    else:
        scores = header.array(f"{_PREFIX}.scores", "f", len(tokens))
        if not all(map(math.isfinite, scores)):
            raise header.refusal(f"{_PREFIX}.scores", "expected finite numbers")
    vocab = {token: index for index, token in enumerate(tokens)}
    missing = [name for byte in range(256) if (name := f"<0x{byte:02X}>") not in vocab]
    if missing:
        raise CheckpointError(
            f"{header.path}: {_PREFIX}.tokens has no {missing[0]}; expected a token for each byte"
        )
    merges = (
        [] if f"{_PREFIX}.merges" not in header else _header_merges(header)
    ) or _merges_of_scores(vocab, scores)
    unknown = header.token(f"{_PREFIX}.unknown_token_id", len(tokens))
    tokenizer = Tokenizer(
        BPE(
            vocab=vocab,
            merges=merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )
    steps = [Replace(_SPACE, " "), ByteFallback(), Fuse()]
    if gemma:
        tokenizer.normalizer = ReplaceText(" ", _SPACE)
        tokenizer.pre_tokenizer = Split(" ", behavior="merged_with_previous")
    else:
        scheme = "first" if prefix_space else "never"
        tokenizer.pre_tokenizer = Metaspace(_SPACE, prepend_scheme=scheme, split=False)
        steps += [Strip(" ", 1, 0)] if prefix_space else []
    tokenizer.decoder = Decoders(steps)
    return tokenizer


def _merges_of_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[Merge]:
    """Every pair of tokens that makes a token: the best scores first, as transformers orders them.

    Of one score, the pair of the longer first token, then of the longer second, then of the lower
    ids comes first.
    """
    ranked = []
    for token, index in vocab.items():
        pairs = [
            (vocab[first], vocab[second], first, second)
            for cut in range(1, len(token))
            if (first := token[:cut]) in vocab and (second := token[cut:]) in vocab
        ]
        ranked += [(-scores[index], -len(a), -len(b), a, b) for _, _, a, b in sorted(pairs)]
    ranked.sort(key=lambda merge: merge[:3])
    return [(first, second) for *_, first, second in ranked]
