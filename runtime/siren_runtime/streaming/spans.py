"""Spans of a text that grows: parts that are scored by themselves, as in whole texts.

A span counts once it is complete: one that the end of the text cuts will be another with the next
token, and a largest of all of those would be larger than the largest that thresholds were chosen
by.
"""

from collections.abc import Callable, Sequence

from siren_runtime.backends.outputs import DoubleArray
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
        self._last: tuple[list[Place], Highest] = [], self._highest([])
        self._seen = 0, 0, -1  # tokens, characters of text, first token that counts
        self._next = 0  # tokens with which a span may be complete

    def forget(self, tokens: int = 0) -> None:
        """Forget the spans that reach beyond the first `tokens`."""
        self._scored = {place: one for place, one in self._scored.items() if place[2] <= tokens}
        self._last = [], self._highest([])
        self._next = 0

    def of(
        self,
        count: int,
        text: str,
        first: int,
        encoded: Callable[[], Encoded],
        rows: Rows,
        *,
        ended: bool = False,
    ) -> Highest:
        """The highest spans of the text so far by each head's name; they stand in the cleaned text.

        Args:
            count, text: how many tokens are read, and the cleaned text that they are of.
            first: the first token that counts.
            encoded: gives the tokens, where they are looked at.
            rows: scores spans from that one on.
            ended: whether the text ends here, so that what its end cuts counts too.

        Returns:
            The same object as before where nothing changed.

        Raises:
            SirenError: what `rows` raises.
        """
        if ended or self._may_change(count, text, first):
            tokens = encoded()
            found = self._complete(tokens, text, first, ended=ended)
            if found != self._last[0]:
                new = [place for place in found if place not in self._scored]
                if new:
                    self._score(new, tokens, rows)
                self._last = found, self._highest(found)
        self._seen = count, len(text), first
        return self._last[1]

    def _may_change(self, count: int, text: str, first: int) -> bool:
        before, length, counted = self._seen
        grown = count >= before and len(text) >= length and first == counted
        return not grown or count >= self._next or may_end_a_sentence(text[length:])

    def _complete(self, encoded: Encoded, text: str, first: int, *, ended: bool) -> list[Place]:
        """The spans that are complete, from token `first` on."""
        count, smallest = len(encoded.ids), self._sizes[0]
        if count - first <= smallest:
            self._next = first + smallest + 1
            return []
        starts = sentences(encoded, text, first, count)
        found = places(starts, self._sizes)
        if not ended and not ends_a_sentence(text):
            self._next = self._next_after(starts)
            return [place for place in found if place[2] < count]
        self._next = 0  # the next token may say that the sentence goes on
        if ended or self._as_whole:
            return found
        last = size_alone(count - starts[-2], self._sizes), starts[-2], count
        return [place for place in found if place[2] < count or place == last]

    def _next_after(self, starts: Sequence[int]) -> int:
        """With how many tokens a span may be complete next, if no sentence ends until then."""
        first, count = starts[0], starts[-1]
        found = []
        for size in self._sizes:
            steps = max(-(-(count - size - first) // step_of(size)), 0)
            found.append(first + steps * step_of(size) + size + 1)
            found += [start + size + 1 for start in starts[:-1] if start + size >= count]
        return min(found)

    def _score(self, new: list[Place], encoded: Encoded, rows: Rows) -> None:
        parts = [*dict.fromkeys((start, stop) for _, start, stop in new)]
        by_part = dict(zip(parts, rows(parts), strict=True))
        for place in new:
            size, start, stop = place
            cut = Cut(size, start, stop, span_of(encoded, start, stop))
            self._scored[place] = cut, by_part[start, stop]

    def _highest(self, found: list[Place]) -> Highest:
        scored = [self._scored[place] for place in found]
        return {name: self._readout.highest_spans(name, scored) for name in self._readout.columns}
