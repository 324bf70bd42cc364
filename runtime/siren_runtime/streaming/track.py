"""One scorer's reading of a growing text."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from siren_runtime.backends.outputs import DoubleArray, FloatArray, Outputs
from siren_runtime.backends.readout import HeadText, HighestSpan, Readout
from siren_runtime.errors import InputError
from siren_runtime.text.deadline import NO_DEADLINE, Deadline
from siren_runtime.text.tokenizer import Encoded, Tokenizer

from .aggregation import Aggregation
from .growing_text import StreamText, StreamTokens, Tokens
from .reader import StreamReader
from .spans import Highest, StreamSpans
from .state import StreamState


@dataclass(frozen=True)
class Member:
    """One scorer's part in streams.

    Attributes:
        tokenizer: its own.
        reader: reads its tokens.
        neurons: how many its heads read together.
        readout: what is read off its outputs.
        reads_anew: whether each feed reads all of a text anew, so that there are no running means.
        read_apart: reads parts of a text as texts of their own, by their ids without special
            tokens, until a deadline: float64 [parts, width], as `readout` has it.
        head: evaluates the heads on means, float32 [rows, neurons]; None where there are no running
            means to take spans from, so that each is read apart.
    """

    tokenizer: Tokenizer
    reader: StreamReader
    neurons: int
    readout: Readout
    reads_anew: bool
    read_apart: Callable[[Sequence[list[int]], Deadline], DoubleArray]
    head: Callable[[FloatArray], Outputs] | None = None


class Track:
    """What one member has read of a stream, and what of it changed in the feed under way.

    Attributes:
        computed: tokens that the feed ran through the engine.
        rolled_back: tokens read before that the feed took back.
        scored_from: the first of the tokens held that the feed has read.
    """

    def __init__(
        self,
        member: Member,
        prompt: str | None,
        response_only: bool,
        aggregation: Aggregation | None,
        early: bool,
        has_rules: bool,
        span_sizes: Sequence[int] = (),
    ) -> None:
        """Begin with no text.

        Args:
            span_sizes: of the spans that are scored too, in tokens.
        """
        self.member = member
        self._spans: StreamSpans | None = None
        self._told: tuple[Highest, Highest] = {}, {}  # in the cleaned text, and as given
        if span_sizes:
            self._spans = StreamSpans(span_sizes, member.readout, as_whole=True)
        self._prompt, self._response_only = prompt, response_only
        self.state = self._empty(aggregation, early, has_rules)
        self.tokens = Tokens([], [])
        self.computed = self.rolled_back = self.scored_from = 0
        self._source: StreamText | StreamTokens | None = None
        self._before: tuple[list[int], list[float]] = ([], [])  # of what slid out
        member.reader.add(self.state)

    def begin(self) -> None:
        """Forget everything."""
        self.member.reader.remove(self.state)
        state = self.state
        self.state = self._empty(state.aggregation, state.early, state.judges_each)
        self.tokens, self._source, self._before = Tokens([], []), None, ([], [])
        self._forget_spans(0)
        self.member.reader.add(self.state)

    def close(self) -> None:
        """Free the memory."""
        self.member.reader.remove(self.state)

    def _empty(self, aggregation: Aggregation | None, early: bool, each: bool) -> StreamState:
        smoothing, neurons = self.member.readout.smoothing, self.member.neurons
        return StreamState(neurons, aggregation, smoothing, early=early, judges_each=each)

    def accept(self, piece: str | list[Any]) -> None:
        """Take a piece in; its tokens are pending then.

        Raises:
            InputError: the piece is not usable, or of the other kind than those before.
        """
        kind = StreamText if isinstance(piece, str) else StreamTokens
        if self._source is None:
            self._source = kind(self.member.tokenizer, self._prompt, self._response_only)
        if not isinstance(self._source, kind):
            raise InputError("a stream takes text or token ids, not both; open another stream")
        self.computed = self.rolled_back = 0
        self._take(self._source.append(piece))  # type: ignore[arg-type]

    @property
    def is_full(self) -> bool:
        """Whether there is more to read than the stream holds."""
        return len(self.tokens.ids) > len(self.state.ids)

    @property
    def unknown(self) -> float:
        """How much of the text held the tokenizer does not know; 0 where token ids are fed."""
        tokenizer = self.member.tokenizer
        known = Encoded([], []) if tokenizer.unknown_id is None else self._encoded(self._held)
        return tokenizer.unknown_share(self.tokens.text, known)

    def heads(
        self, deadline: Deadline = NO_DEADLINE, *, ended: bool = False
    ) -> dict[str, HeadText]:
        """What each head makes of all that was read.

        Args:
            ended: whether the text ends there.

        Raises:
            BackendError: the engine failed in spans.
            InterruptedCall: the deadline passed before all of them were read.
        """
        readout = self.state.readouts[-1]
        assert readout is not None  # the reader fills that of the last token
        heads = self.member.readout.heads(readout)
        if self._spans is None:
            return heads
        counted = self._counted()
        spans = self._spans.of(
            *counted,
            lambda: self._encoded(counted[0]),
            lambda parts: self._rows(parts, deadline),
            self.state.amid,
            ended=ended,
        )
        if spans is not self._told[0]:  # a span that is complete stays where it is
            self._told = spans, {name: self._in_given(found) for name, found in spans.items()}
        return {name: replace(head, spans=self._told[1][name]) for name, head in heads.items()}

    def _counted(self) -> tuple[int, str, int]:
        """The tokens that spans are of, the text that they stand for and the first that counts."""
        tokenizer, count, special = self.member.tokenizer, self._held, 0
        if self.tokens.text:  # token ids that are fed have no special ones around them
            special, count = tokenizer.special_before, count - tokenizer.special_after
        return count, self.tokens.text, max(self.state.context, special)

    def _in_given(self, spans: Sequence[HighestSpan]) -> tuple[HighestSpan, ...]:
        """Spans of the cleaned text that is held, where they stand in the text as given."""
        return (*(replace(one, span=self.tokens.span_in_given(one.span)) for one in spans),)

    def _rows(self, parts: Sequence[tuple[int, int]], deadline: Deadline) -> DoubleArray:
        """What all heads make of parts of what is read, each from a token to before another."""
        member = self.member
        if member.head is not None:
            return member.readout.finite(member.head(self.state.means(parts)))
        return member.read_apart([self.state.ids[start:stop] for start, stop in parts], deadline)

    @property
    def _held(self) -> int:
        return len(self.state.ids) + len(self.state.pending)

    def _encoded(self, count: int) -> Encoded:
        """The first tokens of those held, where they stand in the cleaned text that is held."""
        start, ids = self.tokens.start, self.state.ids + self.state.pending
        offsets = [(first - start, last - start) for first, last in self.state.offsets[:count]]
        return Encoded(ids[:count], offsets)

    @property
    def is_truncated(self) -> bool:
        """Whether text has slid out of the score."""
        return self.state.slid and self.member.reads_anew

    @property
    def span(self) -> tuple[int, int]:
        """The part of the text as given that is held, in characters."""
        return self.tokens.span_in_given((0, len(self.tokens.text)))

    def slide(self, *, keep_scores: bool) -> int:
        """Let the older half go; return how many tokens that is.

        What is left is read anew as a text of its own; the sums of what went are kept.

        Args:
            keep_scores: whether `scores_at` goes by those of what went, until `forget_before`.
        """
        assert self._source is not None
        dropped = max(len(self.state.ids) - self.member.reader.max_tokens // 2, 1)
        if keep_scores:
            self._before[0].extend(self.places()[:dropped])
            self._before[1].extend(self.state.scores[:dropped])
        self.state.slide(dropped)
        self._forget_spans(0)
        self._source.drop(dropped, self.tokens)
        self._take(self._source.tokens())
        return dropped

    def forget_before(self, place: int) -> None:
        """Forget the scores of what slid out before a place of the text."""
        first = bisect_right(self._before[0], place)
        self._before = self._before[0][first:], self._before[1][first:]

    def places(self) -> list[int]:
        """Where the text ends that each token held completes, in characters.

        Special tokens stand nowhere: they complete what the token before them did.
        """
        return list(accumulate((end for _, end in self.state.offsets), max))

    def scores_at(self, places: Sequence[int]) -> list[float]:
        """The scores of the text up to each place: that of the last token which ends by then."""
        ends = [*self._before[0], *self.places()]
        scores = [*self._before[1], *self.state.scores]
        return [scores[max(bisect_right(ends, place) - 1, 0)] for place in places]

    def _take(self, tokens: Tokens) -> None:
        self.tokens = tokens
        held, reader = len(self.state.ids), self.member.reader
        taken_back = self.state.set_tokens(tokens, reader.max_tokens, reader.usable)
        self.rolled_back += taken_back
        self.scored_from = held - taken_back
        if taken_back:
            self._forget_spans(self.scored_from)
        if self._spans is not None and self.member.head is None:
            counted = self._counted()
            self.state.expect(self._spans.new(*counted, lambda: self._encoded(counted[0])))
        self.computed += len(self.state.pending)

    def _forget_spans(self, tokens: int) -> None:
        if self._spans is not None:
            self._spans.forget(tokens)
