"""A tokenizer.json beside a GGUF file: whether it is the tokenizer of the header.

The reference reads the same tokenizer.json, so nothing but the header can tell that it is another
model's.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from siren_runtime.errors import CheckpointError

from .gguf_header import Header
from .gguf_tokenizer import begins_by_default
from .gguf_vocabulary import TOKENS_KEY, Vocabulary, read_vocabulary

_PREFIX = "tokenizer.ggml"
_SPACE = "\u2581"  # SentencePiece's, for which a converter puts plain ones
_ADVICE = "it is the tokenizer of another model. Put the model's own there, or none"


def check_beside(path: Path, data: bytes, header: Header) -> None:
    """Refuse a tokenizer.json of another model than the header has the tokens of.

    Args:
        path, data: of tokenizer.json.

    Raises:
        CheckpointError: a token has another id, one that the header finds whole in a text is none
            that tokenizer.json does, or other tokens stand around every text.
    """
    if TOKENS_KEY not in header:
        return
    vocabulary = read_vocabulary(header)
    tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    tokenizer.no_truncation()
    _check_tokens(path, tokenizer, header, vocabulary)
    _check_ends(path, tokenizer, header, vocabulary)


def _check_tokens(path: Path, tokenizer: Tokenizer, header: Header, vocabulary: Vocabulary) -> None:
    """Compare the tokens that merges make, and those that are found whole in a text."""
    added = tokenizer.get_added_tokens_decoder()
    for index, token in enumerate(vocabulary.tokens):
        found, same = tokenizer.id_to_token(index), True
        if vocabulary.is_normal(index):
            same = found == token
        elif vocabulary.matched_whole(index) and token != f"[PAD{index}]":  # which is no token
            same = found is not None and _spelled(found) == _spelled(token)
            same = same and (index in added or not token.strip(f" {_SPACE}"))  # merges make runs
        if not same:
            known = tokenizer.token_to_id(token)
            kind = "" if known != index else ", but no added token"
            raise CheckpointError(
                f"{path}: token {index} is {found!r}, and {token!r} in {header.path.name} beside "
                f"it; here that one is {'none' if known is None else f'token {known}'}{kind}; "
                f"{_ADVICE}"
            )


def _spelled(token: str) -> str:
    return token.replace(_SPACE, " ")


def _check_ends(path: Path, tokenizer: Tokenizer, header: Header, vocabulary: Vocabulary) -> None:
    """Compare the tokens before and after every text, where the header says which they are."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    count, whole = len(plain), tokenizer.post_process(plain)
    start = whole.special_tokens_mask.index(0) if count else len(whole)
    around = {"bos": whole.ids[:start], "eos": whole.ids[start + count :]}
    defaults = {"bos": begins_by_default(header), "eos": False}
    for name, found in around.items():
        key, default = f"{_PREFIX}.add_{name}_token", defaults[name]
        if key not in header and default is None:
            continue
        expected = []
        if header.flag(key, bool(default)):
            index = header.token(f"{_PREFIX}.{name}_token_id", len(vocabulary.tokens))
            if index is None:
                raise header.refusal(f"{_PREFIX}.{name}_token_id", f"{key} asks for one")
            expected = [index]
        if found != expected:
            where = "before" if name == "bos" else "after"
            raise CheckpointError(
                f"{path}: puts {_named(found, tokenizer)} {where} every text, and "
                f"{header.path.name} beside it {_named(expected, tokenizer)} ({key}); {_ADVICE}"
            )


def _named(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Tokens by their names and ids."""
    return ", ".join(f"{tokenizer.id_to_token(i)!r} ({i})" for i in ids) or "nothing"
