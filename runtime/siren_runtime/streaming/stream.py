"""A stream: a text that grows, scored after each piece at the cost of its new tokens.

    with guard.stream() as stream:
        for piece in pieces:
            if stream.feed(piece).is_harmful:
                break

Scores are those of `Guard.score` of the whole text so far, however it is cut, as long as it fits
in `max_length`; beyond, those of a whole text that is not truncated, as long as it fits in the
stream (`max_tokens`). What happens then is the sliding policy of docs/streaming.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

from siren_runtime.errors import BackendError, InputError, SirenError

from .decision import Decision
from .growing_text import StreamText, StreamTokens, Tokens
from .state import StreamState

if TYPE_CHECKING:
    from .streams import Streams


@dataclass(frozen=True)
class StreamResult:
    """The verdict on a stream after a feed.

    Attributes:
        score: probability of harm of the text so far, 0 to 1.
        is_harmful: whether `score` is at least `threshold`.
        threshold: the threshold that was applied.
        tokens: tokens that count so far, those that slid out of the stream included.
        computed: tokens that this feed ran through the engine.
        rolled_back: tokens read before that this feed took back, since the new text changed them.
        slid: whether text slid out of the stream, so that the score is no longer exact.
        decisions: those of the stream's rules in force at a token that this feed read.
        tier: name of the bundle's tier that the score falls in; None below the lowest, and where
            the bundle was not calibrated.
    """

    score: float
    is_harmful: bool
    threshold: float
    tokens: int
    computed: int
    rolled_back: int
    slid: bool
    decisions: tuple[Decision, ...] = ()
    tier: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, decisions as dictionaries, and the tier where there is one."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.tier is None:
            del fields["tier"]
        return fields | {"decisions": [decision.to_dict() for decision in self.decisions]}


@dataclass(frozen=True)
class TokenScore:
    """A token of a stream and the score of the text that ends with it.

    Attributes:
        token: its id.
        start, end: where it stands in the cleaned text, in characters from the beginning of the
            stream; both 0 for special tokens and where ids were fed.
        score: probability of harm up to here.
        text: the cleaned text from start to end.
        space: the cleaned text, of no token, between the token before and this one.
    """

    token: int
    start: int
    end: int
    score: float
    text: str
    space: str = ""


class Stream:
    """A session over one growing text. `Guard.stream` and `Streams.open` make it.

    A stream takes text or token ids, not both. After an error it refuses to go on until `reset`,
    since it no longer knows the whole text. Threads may share it.
    """

    def __init__(
        self,
        streams: "Streams",
        state: StreamState,
        prompt: str | None,
        response_only: bool,
        threshold: float,
    ) -> None:
        self._streams = streams
        self._prompt, self._response_only, self._threshold = prompt, response_only, threshold
        self._closed = False
        self.begin(state)

    def feed(self, text: str) -> StreamResult:
        """Add `text` and score all text so far.

        Raises:
            InputError: `text` is not a string or holds a lone surrogate, the tokenizer makes no
                token of the text so far, or token ids were fed before.
            BackendError: the engine failed or gave a score that is not finite, the stream is
                closed, or it failed before.
        """
        return self._only(self._streams.feed([(self, text)]))

    def feed_tokens(self, ids: Iterable[SupportsIndex]) -> StreamResult:
        """Add token ids of the backbone's tokenizer and score all so far.

        The first feed holds the special tokens that the tokenizer puts in front, unless the
        stream has a prompt, which is tokenized with them.

        Raises:
            InputError: an id is not a whole number from 0, or text was fed before.
            BackendError: as `feed`.
        """
        if isinstance(ids, str):
            raise InputError("feed_tokens takes token ids, found a str; use feed")
        return self._only(self._streams.feed([(self, cast("Sequence[SupportsIndex]", ids))]))

    @property
    def result(self) -> StreamResult | None:
        """What the last feed returned; None before the first.

        Raises:
            BackendError: the stream is closed or failed.
        """
        with self._streams.lock:
            self.check_usable()
            return self._result

    @property
    def scores(self) -> list[TokenScore]:
        """One entry for each token that the stream holds and counts.

        Raises:
            BackendError: the stream is closed or failed.
        """
        with self._streams.lock:
            self.check_usable()
            return self._scores()

    @property
    def memory_bytes(self) -> int:
        """Memory that the stream takes now, in bytes."""
        with self._streams.lock:
            self.check_usable()
            return self._streams.memory_of(self)

    def reset(self) -> None:
        """Begin anew, with the same prompt and rules.

        Raises:
            BackendError: the stream is closed.
        """
        with self._streams.lock:
            if self._closed:
                raise BackendError("the stream is closed; open another one")
            self._streams.restart(self)

    def close(self) -> None:
        """Free the stream's memory; it cannot be used after that."""
        with self._streams.lock:
            if not self._closed:
                self._closed = True
                self._streams.discard(self)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def check_usable(self) -> None:
        """Refuse a stream that is closed or failed.

        Raises:
            BackendError: it is.
        """
        if self._closed:
            raise BackendError("the stream is closed; open another one")
        if self.error is not None:
            raise BackendError(
                f"the stream failed before and has no verdict ({self.error}); reset it"
            )

    # What follows is for Streams, which calls it with its lock held.

    def begin(self, state: StreamState) -> None:
        """Forget everything, for a new state."""
        self.state = state
        self._source: StreamText | StreamTokens | None = None
        self._result: StreamResult | None = None
        self.error: BaseException | None = None
        self._tokens = Tokens([], [])
        self._computed = self._rolled_back = self._scored_from = 0
        self._decisions: dict[tuple[str, int], Decision] = {}

    def accept(self, piece: str | list[Any]) -> None:
        """Take a piece in; its tokens are pending then.

        Raises:
            InputError: as `feed` and `feed_tokens`.
        """
        kind = StreamText if isinstance(piece, str) else StreamTokens
        if not isinstance(piece, str | list):
            raise InputError(f"a piece of a stream must be a str, found {type(piece).__name__}")
        if self._source is None:
            self._source = kind(self._streams.tokenizer, self._prompt, self._response_only)
        if not isinstance(self._source, kind):
            raise InputError("a stream takes text or token ids, not both; open another stream")
        self._computed = self._rolled_back = 0
        self._decisions = {}
        self._take(self._source.append(piece))  # type: ignore[arg-type]

    def _take(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._rolled_back += self.state.set_tokens(tokens, self._streams.max_tokens)
        self._scored_from = len(self.state.ids)
        self._computed += len(self.state.pending)

    def slide(self) -> bool:
        """Once the stream is full, let the older half go; return whether there is more to read.

        What is left is read anew as a text of its own; the sums of what went are kept.
        """
        held = len(self.state.ids)
        if len(self._tokens.ids) <= held or self._source is None:
            return False
        self._collect_decisions()
        dropped = max(held - self._streams.max_tokens // 2, 1)
        self.state.slide(dropped)
        self._source.drop(dropped, self._tokens)
        self._take(self._source.tokens())
        return True

    def _collect_decisions(self) -> None:
        """Note the decisions in force at tokens just read, or at the last if there are none."""
        verdicts = self.state.verdicts
        for token in verdicts[min(self._scored_from, len(verdicts) - 1) :]:
            for _, decision in token:
                if decision is not None:
                    self._decisions.setdefault((decision.rule, decision.token), decision)

    def _scores(self) -> list[TokenScore]:
        state, text, shift = self.state, self._tokens.text, self._tokens.start
        scores, before = [], shift
        for token, (start, end), score in zip(state.ids, state.offsets, state.scores, strict=False):
            piece, space = text[start - shift : end - shift], text[before - shift : start - shift]
            scores.append(TokenScore(token, start, end, score, piece, space))
            before = max(before, end)
        return scores[state.context :]

    def conclude(self) -> StreamResult:
        """Return the verdict on all that was read."""
        self._collect_decisions()
        state, score = self.state, self.state.scores[-1]
        self._result = StreamResult(
            score=score,
            is_harmful=score >= self._threshold,
            threshold=self._threshold,
            tokens=state.position(len(state.ids)),
            computed=self._computed,
            rolled_back=self._rolled_back,
            slid=state.slid,
            decisions=tuple(self._decisions.values()),
            tier=self._streams.tier_of(score),
        )
        return self._result

    @staticmethod
    def _only(results: "list[StreamResult | SirenError]") -> StreamResult:
        (result,) = results
        if isinstance(result, SirenError):
            raise result
        return result
