"""The vocabulary of a GGUF header: its tokens and what kind each is of."""

from dataclasses import dataclass

from siren_runtime.errors import CheckpointError

from .gguf_header import Header

TOKENS_KEY = "tokenizer.ggml.tokens"
_KINDS_KEY = "tokenizer.ggml.token_type"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_MAX_TOKEN = 512  # characters; the longest of published models has some 250
_KINDS = frozenset(range(7))  # undefined, normal, unknown, control, user defined, unused, byte


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, and the kind of each as the header numbers it."""

    tokens: list[str]
    kinds: list[int]

    @property
    def control(self) -> list[str]:
        """Special tokens, matched whole in a text."""
        return self._of(_CONTROL)

    @property
    def user_defined(self) -> list[str]:
        """Tokens matched whole in a text that are not special."""
        return self._of(_USER_DEFINED)

    def is_normal(self, index: int) -> bool:
        """Whether merges make the token."""
        return self.kinds[index] == _NORMAL

    def matched_whole(self, index: int) -> bool:
        """Whether the token is found in a text as it is."""
        return self.kinds[index] in (_CONTROL, _USER_DEFINED)

    def _of(self, kind: int) -> list[str]:
        return [t for t, found in zip(self.tokens, self.kinds, strict=True) if found == kind]


def read_vocabulary(header: Header) -> Vocabulary:
    """Read tokens and their kinds.

    Raises:
        CheckpointError: there are none, two are equal, one is empty or of absurd
            length, or a kind is not known.
    """
    tokens = header.strings(TOKENS_KEY)
    kinds = [_NORMAL] * len(tokens)
    if _KINDS_KEY in header:
        kinds = header.array(_KINDS_KEY, "i", len(tokens))
    unknown = sorted(set(kinds) - _KINDS)
    if unknown:
        raise CheckpointError(f"{header.path}: {_KINDS_KEY} holds {unknown[0]}; expected 0 to 6")
    if not tokens:
        raise CheckpointError(f"{header.path}: {TOKENS_KEY} is empty")
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if ids.setdefault(token, index) != index:
            raise CheckpointError(
                f"{header.path}: {TOKENS_KEY} holds {token[:80]!r} as {ids[token]} and as {index}"
            )
        if not 1 <= len(token) <= _MAX_TOKEN:
            raise CheckpointError(
                f"{header.path}: {TOKENS_KEY}[{index}] has {len(token):,} characters; expected "
                f"1 to {_MAX_TOKEN}"
            )
    return Vocabulary(tokens, kinds)
