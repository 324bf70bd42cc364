"""A growing text as tokens: cleaned and tokenized anew, compared with what was there before."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import SupportsIndex

from siren_runtime.bundle.arguments import whole_number
from siren_runtime.errors import InputError
from siren_runtime.text.passage import Passage, Span
from siren_runtime.text.rules import clean, join
from siren_runtime.text.tokenizer import Tokenizer

Offsets = tuple[int, int]

_MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True)
class Tokens:
    """The tokens of all text so far.

    Attributes:
        ids: special tokens included.
        offsets: where each stands in the cleaned text, in characters; (0, 0) where it does not.
        context: how many of them, from the front, are read but not counted in the mean.
        text: the cleaned text that they are of, from character `start` on.
        given: the text as given that this is of, from character `given_start` on: the prompt, a
            newline and what was fed.
    """

    ids: list[int]
    offsets: list[Offsets]
    context: int = 0
    text: str = ""
    start: int = 0
    given: str = ""
    given_start: int = 0

    def span_in_given(self, span: Span) -> Span:
        """Where a part of `text`, in characters from its own beginning, stands as given."""
        if not self.given:
            return span
        start, end = self._passage.span_in_given(span)
        return start + self.given_start, end + self.given_start

    @cached_property
    def _passage(self) -> Passage:
        return Passage(self.given, self.text)


class StreamText:
    """What was fed as text so far.

    The whole of it is cleaned and tokenized at each feed, since what comes next may change what
    came before: it completes a marker that the cleaner removes or a word that becomes other
    tokens. Each feed so costs microseconds for every token that is held, against milliseconds in
    the engine for each new one.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: str | None, response_only: bool) -> None:
        self._tokenizer = tokenizer
        self._prompt, self._text = prompt, ""
        self._dropped = self._given_dropped = 0  # characters of cleaned text, and as given
        # Tokens count if they reach beyond this character; None: all count.
        self._boundary = len(clean(prompt).strip()) if response_only and prompt else None

    def append(self, piece: str) -> Tokens:
        """Add `piece` and return the tokens of the whole.

        Raises:
            InputError: `piece` is not a string or holds a lone surrogate, or the tokenizer makes
                no token of the text, or one that the backbone's embedding has no row for.
        """
        if not isinstance(piece, str):
            raise InputError(f"a piece of a stream must be a str, found {type(piece).__name__}")
        self._text += piece
        return self.tokens()

    def tokens(self) -> Tokens:
        """Return the tokens of all text so far."""
        given = join(self._prompt, self._text)
        cleaned = clean(given)
        encoded = self._tokenizer.encode(cleaned)
        if not encoded.ids:
            raise InputError("the tokenizer makes no token of the text, so there is no score yet")
        self._tokenizer.check_embedded(encoded.ids)
        offsets = [(start + self._dropped, end + self._dropped) for start, end in encoded.offsets]
        context = self._context(cleaned, encoded.offsets)
        places = self._dropped, given, self._given_dropped
        return Tokens(encoded.ids, offsets, context, cleaned, *places)

    def drop(self, count: int, tokens: Tokens) -> None:
        """Forget the text of the first `count` of `tokens`, which `append` returned last."""
        cut = tokens.offsets[count][0] - self._dropped
        # A byte-level token begins with the space before it, which `clean` strips from what is left
        cut = len(tokens.text) - len(tokens.text[cut:].lstrip())
        first, _ = tokens.span_in_given((cut, cut + 1))
        kept = tokens.given[first - self._given_dropped :]
        # A prompt by itself stays one: what comes is its response.
        self._prompt, self._text = (None, kept) if self._text else (kept, "")
        self._dropped, self._given_dropped = self._dropped + cut, first
        self._boundary = max((self._boundary or 0) - cut, 0)

    def _context(self, cleaned: str, offsets: Sequence[Offsets]) -> int:
        """Tokens before the first that reaches beyond the boundary and the white space after it.

        None counts yet: all do, so that there is a score from the beginning.
        """
        if self._boundary is None:
            return 0
        boundary = len(cleaned) - len(cleaned[self._boundary :].lstrip())
        return next((i for i, (_, end) in enumerate(offsets) if end > boundary), 0)


class StreamTokens:
    """What was fed as token ids so far; the prompt, a text, is in front of them."""

    def __init__(self, tokenizer: Tokenizer, prompt: str | None, response_only: bool) -> None:
        """Begin with the prompt.

        Raises:
            InputError: the tokenizer puts special tokens behind it, which would stand in between.
        """
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        if prompt and tokenizer.special_after:
            raise InputError(
                "token ids cannot follow a prompt, behind which this bundle's tokenizer puts "
                "special tokens; feed text, or the ids of the whole and no prompt"
            )
        if prompt:
            self._ids += tokenizer.encode(clean(prompt) + "\n").ids
        self._context = len(self._ids) if response_only else 0

    def append(self, ids: Iterable[SupportsIndex]) -> Tokens:
        """Add `ids` and return the tokens of the whole.

        Raises:
            InputError: an id is not a whole number from 0 or of no row of the embedding, or there
                is no token yet.
        """
        new = [*map(_token_id, ids)]
        self._tokenizer.check_embedded(new)
        self._ids += new
        if not self._ids:
            raise InputError("no token was fed, so there is no score yet")
        return self.tokens()

    def tokens(self) -> Tokens:
        """Return all tokens so far."""
        context = self._context if self._context < len(self._ids) else 0
        return Tokens(list(self._ids), [(0, 0)] * len(self._ids), context)

    def drop(self, count: int, _: Tokens) -> None:
        """Forget the first `count` tokens."""
        self._ids = self._ids[count:]
        self._context = max(self._context - count, 0)


def _token_id(value: SupportsIndex) -> int:
    return whole_number("a token id", value, 0, _MAX_TOKEN_ID)
