"""The backbone's tokenizer, as a bundle holds it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic

from siren_runtime.errors import BundleError, InputError, raised_in

from .deadline import NO_DEADLINE, Deadline
from .invisible import INVISIBLE, cut_share, has_invisible

# Characters that are tokenized first for each token that a text may have, to see if there are more.
_CHARACTERS_A_TOKEN = 4
_MARGIN = 64  # tokens that the cut at the end of a part of a text may add
AT_ONCE = 1 << 14  # characters that are tokenized between two looks at the clock: some 20 ms

_TOKENIZING = "while the text was tokenized"
_PANIC = "PanicException"  # of the library's Rust code; its class cannot be imported


@dataclass(frozen=True)
class Encoded:
    """A text's token ids, and where each token stands in it: characters from start to end.

    A special token that the text does not hold stands at (0, 0).
    """

    ids: list[int]
    offsets: list[tuple[int, int]]

    def part(self, tokens: slice, first: int = 0) -> "Encoded":
        """Some of the tokens, and where each stands in the text from character `first` on."""
        offsets = [(start - first, end - first) for start, end in self.offsets[tokens]]
        return Encoded(self.ids[tokens], offsets)


class Tokenizer:
    """Turns cleaned texts into token ids. Safe to share between threads.

    Attributes:
        room: tokens of a text that fit in `max_length` beside the special ones.
        unknown_id: of the token that stands for what the vocabulary lacks; None where it lacks
            nothing.

    Raises:
        BundleError: tokenizer.json is not one, or `max_length` leaves no room for a text beside
            its special tokens.
    """

    def __init__(
        self,
        path: Path,
        max_length: int,
        content: bytes | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Read tokenizer.json, or take its `content` where it was read before.

        Args:
            vocab_size: the rows of the backbone's token embedding; None where that is not known.
        """
        import tokenizers  # slow to import, so not when siren_runtime is

        self._path, self._vocab_size = path, vocab_size
        with self._failures():
            content = path.read_bytes() if content is None else content
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self.unknown_id = self._unknown_id()
            # Of a longer word WordPiece makes one token, and of its cut beginning as many as these.
            self._margin = _MARGIN + getattr(self._tokenizer.model, "max_input_chars_per_word", 0)
        if max_length <= special:
            raise BundleError(
                f"{path}: adds {special} special tokens, so a max_length of {max_length} leaves "
                "none for the text"
            )
        self.max_length = max_length
        self.room = max_length - special

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, special tokens included, without padding.

        Each is truncated on the right to `max_length`.

        Raises:
            BundleError: tokenizer.json makes the tokenizer fail on a text.
        """
        return [self.with_special(ids[: self.room]) for ids in self.encode_plain(texts)]

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return all token ids of each text, without special tokens.

        Raises:
            BundleError: tokenizer.json makes the tokenizer fail on a text.
        """
        with self._failures():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]

    def encode_texts(self, texts: Sequence[str], *, places: bool) -> list[Encoded]:
        """Return all tokens of each text, without special ones.

        Args:
            places: whether they are needed; where not, and the tokenizer loses no text, they are
                left out, which is quicker.

        Raises:
            BundleError: as `encode_plain`.
        """
        if self.unknown_id is None and not places:
            return [Encoded(ids, []) for ids in self.encode_plain(texts)]
        with self._failures():
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
            return [Encoded(encoding.ids, encoding.offsets) for encoding in encodings]

    def has_more_tokens(self, text: str, limit: int, deadline: Deadline = NO_DEADLINE) -> bool:
        """Whether a text surely has more than `limit` tokens, seen without tokenizing all of it.

        Ever longer beginnings are tokenized until one has clearly more, or is the text. Each tells
        how long the next one takes, or all of the text, which has not begun if it would end behind
        the deadline.

        Raises:
            BundleError: tokenizer.json makes the tokenizer fail on the text.
            InterruptedCall: the deadline passed or would do so, or the call was cancelled.
        """
        length = min(_CHARACTERS_A_TOKEN * limit, AT_ONCE)
        pace = 0.0  # seconds a character
        while length < len(text):
            deadline.check(_TOKENIZING, pace * length)
            begun = monotonic()
            (ids,) = self.encode_plain([text[:length]])
            pace = (monotonic() - begun) / length
            if len(ids) > limit + self._margin:
                return True
            length *= 2
        deadline.check(_TOKENIZING, pace * len(text))
        return False

    def check_embedded(self, ids: Iterable[int]) -> None:
        """Refuse a token that the backbone's embedding has no row for.

        Raises:
            InputError: there is one; it is named.
        """
        if self._vocab_size is None or (token := max(ids, default=0)) < self._vocab_size:
            return
        name = self._tokenizer.id_to_token(token)
        raise InputError(
            f"the text holds token {token}{'' if name is None else f', {name!r}'}, for which the "
            f"backbone's embedding, of {self._vocab_size:,} rows, has none; leave that token out"
        )

    def with_special(self, ids: list[int]) -> list[int]:
        """Return the ids of a text with the special tokens around them."""
        return [*self._around[0], *ids, *self._around[1]]

    def encode(self, text: str, *, special: bool = True) -> Encoded:
        """Return all of a text's tokens, however many they are, and where they stand.

        Args:
            special: with the special tokens.

        Raises:
            BundleError: tokenizer.json makes the tokenizer fail on the text.
        """
        with self._failures():
            encoding = self._tokenizer.encode(text, add_special_tokens=special)
            return Encoded(encoding.ids, encoding.offsets)

    def unknown_share(self, text: str, encoded: Encoded) -> float:
        """How much of a text its tokens do not say, 0 to 1.

        That is the largest of three: the share of its tokens that stand for what the vocabulary
        lacks; of its characters, white space left out, that no known token covers, since one
        unknown token may stand for a million characters, and some tokenizers drop characters; and
        of those in words that invisible characters cut.

        Args:
            encoded: of the text; special tokens, which stand nowhere, do not count. Where there is
                no `unknown_id`, it is not looked at.
        """
        cut = cut_share(text, self._left_out) if has_invisible(text) else 0.0
        if self.unknown_id is None:
            return cut
        visible = len("".join(text.split()))
        if not visible:
            return cut
        known = unknown = uncovered = last = 0
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if end <= start:
                continue
            if token == self.unknown_id:
                unknown += 1
                continue
            known += 1
            if start > last:
                uncovered += len("".join(text[last:start].split()))
            last = max(last, end)
        uncovered += len("".join(text[last:].split()))
        return max(unknown / max(known + unknown, 1), uncovered / visible, cut)

    @property
    def special_before(self) -> int:
        """How many special tokens stand before those of a text."""
        return len(self._around[0])

    @property
    def special_after(self) -> int:
        """How many stand behind them."""
        return len(self._around[1])

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after those of a text."""
        with self._failures():
            plain = self._tokenizer.encode("a", add_special_tokens=False)
            count, whole = len(plain), self._tokenizer.post_process(plain)
            start = whole.special_tokens_mask.index(0) if count else len(whole)
        return whole.ids[:start], whole.ids[start + count :]

    @cached_property
    def _left_out(self) -> dict[int, None]:
        """The invisible characters that make no difference within a word, for `cut_share`."""
        whole, *cut = self.encode_plain(["ab", *(f"a{character}b" for character in INVISIBLE)])
        pairs = zip(INVISIBLE, cut, strict=True)
        return {ord(character): None for character, ids in pairs if ids == whole}

    def _unknown_id(self) -> int | None:
        model = self._tokenizer.model
        if type(model).__name__ == "Unigram":  # which does not say it
            import json  # of no use to other tokenizers

            fields = json.loads(self._tokenizer.to_str())["model"]
            return None if fields.get("byte_fallback") else fields.get("unk_id")
        if getattr(model, "byte_fallback", False) or model.unk_token is None:
            return None
        return self._tokenizer.token_to_id(model.unk_token)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        # tokenizers raises plain Exception or ValueError, and a panic of its Rust code is not even
        # that. What a signal's handler raises is not raised in this file.
        except BaseException as error:
            own = type(error) in (Exception, ValueError) or type(error).__name__ == _PANIC
            if not own or not raised_in(error, __file__):
                raise
            raise BundleError(f"{self._path}: not a usable tokenizer: {error}") from error
