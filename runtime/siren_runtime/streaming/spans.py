"""Spans of a text that grows: parts that are scored by themselves, as in whole texts.

A span counts once it is complete: one that the end of the text cuts will be another with the next
token, and a largest of all of those would be larger than the largest that thresholds were chosen
by.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from siren_runtime.backends.outputs import DoubleArray
from siren_runtime.backends.promising import promising
from siren_runtime.backends.readout import HighestSpan, Readout
from siren_runtime.text.spans import (
    Cut,
    ends_a_sentence,
    may_end_a_sentence,
    places,
    sentences,
    size_alone,
    span_of,
    step_of,
)
from siren_runtime.text.tokenizer import Encoded

Place = tuple[int, int, int]  # the size of a span, its first token and the one behind its last
Highest = dict[str, tuple[HighestSpan, ...]]  # by each head's name
# The first token of each span and the one behind its last -> what all heads make of it, as
# `siren_runtime.backends.readout` has it, finite, float64 [spans, width].
Rows = Callable[[Sequence[tuple[int, int]]], DoubleArray]


@dataclass(frozen=True)
class Amid:
    """What a pass over a text tells of spans that are read apart, by which the promising are told.

    Attributes:
        tokens: of the text, special ones included.
        rows: by the first token of each span and the one behind its last, what all heads make of
            its mean, as `Rows`.
    """

    tokens: int = 0
    rows: Mapping[tuple[int, int], DoubleArray] = field(default_factory=dict)


NOTHING_AMID = Amid()


class StreamSpans:
    """Scores the spans of one stream, each once."""

    def __init__(self, sizes: Sequence[int], readout: Readout, *, as_whole: bool) -> None:
        """Begin with no span.

        Args:
            sizes: in tokens, ascending.
            as_whole: at the end of a sentence count what ends there as in a whole text that ends
                there, also what goes on with the next sentence. Otherwise a span that counts once
                counts for good, but for a sentence whose end turns out to be none, as in "3.5".
        """
        self._sizes, self._readout, self._as_whole = sizes, readout, as_whole
        self._scored: dict[Place, tuple[Cut, DoubleArray]] = {}
        self._passed_over: set[Place] = set()
        self._last: tuple[list[Place], Highest] = [], self._highest([])
        self._seen = 0, 0, -1  # tokens, characters of text, first token that counts
        self._next = 0  # tokens with which a span may be complete

    def forget(self, tokens: int = 0) -> None:
        """Forget the spans that reach beyond the first `tokens`."""
        self._scored = {place: one for place, one in self._scored.items() if place[2] <= tokens}
        self._passed_over = {place for place in self._passed_over if place[2] <= tokens}
        self._last = [], self._highest([])
        self._next = 0

    def new(
        self, count: int, text: str, first: int, encoded: Callable[[], Encoded]
    ) -> list[tuple[int, int]]:
        """The spans that `of` has yet to score and that stay spans whatever comes, each by its
        first token and the one behind its last; the arguments are as there.

        Those that end where the text does are not among them: some are gone with the next token,
        and would be read in the place of a sentence that stays. So all of them are read.
        """
        if not self._may_change(count, text, first):
            return []
        found, _ = self._complete(encoded(), text, first, ended=False)
        return [*dict.fromkeys(place[1:] for place in self._unseen(found) if place[2] < count)]

    def of(
        self,
        count: int,
        text: str,
        first: int,
        encoded: Callable[[], Encoded],
        rows: Rows,
        amid: Amid = NOTHING_AMID,
        *,
        ended: bool = False,
    ) -> Highest:
        """The highest spans of the text so far by each head's name; they stand in the cleaned text.

        Args:
            count, text: how many tokens are read, and the cleaned text that they are of.
            first: the first token that counts.
            encoded: gives the tokens, where they are looked at.
            rows: scores spans from that one on.
            amid: of the spans in it the promising are scored, and the others never count.
            ended: whether the text ends here, so that what its end cuts counts too.

        Returns:
            The same object as before where nothing changed.

        Raises:
            SirenError: what `rows` raises.
        """
        if ended or self._may_change(count, text, first):
            tokens = encoded()
            found, self._next = self._complete(tokens, text, first, ended=ended)
            if found != self._last[0]:
                new = self._unseen(found)
                if new:
                    self._score(new, tokens, rows, amid)
                self._last = found, self._highest(found)
        self._seen = count, len(text), first
        return self._last[1]

    def _may_change(self, count: int, text: str, first: int) -> bool:
        before, length, counted = self._seen
        grown = count >= before and len(text) >= length and first == counted
        return not grown or count >= self._next or may_end_a_sentence(text[length:])

    def _unseen(self, found: Sequence[Place]) -> list[Place]:
        return [one for one in found if one not in self._scored and one not in self._passed_over]

    def _complete(
        self, encoded: Encoded, text: str, first: int, *, ended: bool
    ) -> tuple[list[Place], int]:
        """The spans that are complete, from token `first` on, and with how many tokens another one
        may be.
        """
        count, smallest = len(encoded.ids), self._sizes[0]
        if count - first <= smallest:
            return [], first + smallest + 1
        starts = sentences(encoded, text, first, count)
        found = places(starts, self._sizes)
        if not ended and not ends_a_sentence(text):
            return [place for place in found if place[2] < count], self._next_after(starts)
        if not ended and not self._as_whole:
            last = size_alone(count - starts[-2], self._sizes), starts[-2], count
            found = [place for place in found if place[2] < count or place == last]
        return found, 0  # the next token may say that the sentence goes on

    def _next_after(self, starts: Sequence[int]) -> int:
        """With how many tokens a span may be complete next, if no sentence ends until then."""
        first, count = starts[0], starts[-1]
        found = []
        for size in self._sizes:
            steps = max(-(-(count - size - first) // step_of(size)), 0)
            found.append(first + steps * step_of(size) + size + 1)
            found += [start + size + 1 for start in starts[:-1] if start + size >= count]
        return min(found)

    def _score(self, new: list[Place], encoded: Encoded, rows: Rows, amid: Amid) -> None:
        cuts = [Cut(*place, span_of(encoded, *place[1:])) for place in new]
        cuts = self._worth_reading(cuts, amid)
        parts = [*dict.fromkeys((cut.start, cut.stop) for cut in cuts)]
        by_part = dict(zip(parts, rows(parts), strict=True))
        for cut in cuts:
            place = cut.size, cut.start, cut.stop
            self._scored[place] = cut, by_part[place[1:]]
        self._passed_over.update({*new} - self._scored.keys())

    def _worth_reading(self, cuts: list[Cut], amid: Amid) -> list[Cut]:
        """All but those of `amid` that are not promising."""
        told = [cut for cut in cuts if (cut.start, cut.stop) in amid.rows]
        if not told:
            return cuts
        scores = np.array([amid.rows[cut.start, cut.stop] for cut in told])
        chosen = promising(told, scores[:, self._readout.promising_columns], amid.tokens)
        left = {*told} - {*chosen}
        return [cut for cut in cuts if cut not in left]

    def _highest(self, found: list[Place]) -> Highest:
        scored = [self._scored[place] for place in found if place in self._scored]
        return {name: self._readout.highest_spans(name, scored) for name in self._readout.columns}
