"""Compare a checkpoint's tokens with those that transformers makes for llm-siren.

A text that is tokenized otherwise is scored otherwise, and a score alone does not say why. The
bound of a quantized precision may even hide it, so tokens must be equal at every precision.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from tokenizers import Tokenizer

from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.text.rules import clean

from .gguf_reference import read_tokenizer
from .unavailable import ReferenceUnavailable

_SHOWN = 8  # tokens from the first that differs


def compare_tokens(checkpoint: Checkpoint, texts: Sequence[str]) -> str | None:
    """Say which text's tokens differ from those of transformers, and from where on.

    Each added token of either side is looked at too: alone, amid words and inside one. None where
    nothing differs, and where nothing can be compared, which `why_not_compared` says.

    Args:
        texts: to be cleaned and tokenized, whole.
    """
    try:
        theirs = their_tokenizer(checkpoint)
    except ReferenceUnavailable:
        return None
    added = map(str, theirs.get_added_vocab())
    ours = Tokenizer.from_str(checkpoint.tokenizer_json.decode("utf-8"))
    ours.no_truncation()
    ours.no_padding()
    declared = (token.content for token in ours.get_added_tokens_decoder().values())
    amid = (f"{token} a {token} b{token}c" for token in dict.fromkeys([*declared, *added]))
    for text in map(clean, [*texts, *amid]):
        pairs = list(zip_longest(ours.encode(text).ids, theirs(text)["input_ids"]))
        at = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
        if at is not None:
            one, other = zip(*pairs[at : at + _SHOWN], strict=True)
            return (
                f"{checkpoint.path}: tokenizer.json tokenizes {text[:80]!r} otherwise than "
                f"{type(theirs).__name__}, the tokenizer that transformers makes of the same "
                f"files: from token {at} on {list(one)} and {list(other)}"
            )
    return None


def why_not_compared(checkpoint: Checkpoint) -> str | None:
    """Say why `compare_tokens` has nothing to compare tokens with; None where it has."""
    try:
        their_tokenizer(checkpoint)
    except ReferenceUnavailable as reason:
        return str(reason)
    return None


def their_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer that transformers makes of a checkpoint's files.

    Raises:
        ReferenceUnavailable: it is not installed, or cannot load them.
    """
    try:
        from transformers import AutoTokenizer, logging
    except ImportError:
        raise ReferenceUnavailable("transformers is not installed") from None
    logging.set_verbosity_error()
    try:
        if checkpoint.is_gguf:
            theirs = read_tokenizer(checkpoint).made
        else:
            theirs = AutoTokenizer.from_pretrained(
                str(checkpoint.path.resolve()), trust_remote_code=checkpoint.remote_code is not None
            )
        theirs.get_added_vocab()
    except Exception as error:  # whatever it raises
        raise ReferenceUnavailable(f"transformers cannot load the tokenizer: {error}") from error
    return theirs
