"""Spans of a text that grows: parts whose own mean is scored, as in whole texts.

Of running sums of neurons a span's mean is a difference of two. A span counts once it is complete:
one that the end of the text cuts will be another with the next token, and a largest of all of those
would be larger than the largest that thresholds were chosen by.
"""

from collections.abc import Callable, Sequence

from siren_runtime.backends.outputs import FloatArray, Outputs
from siren_runtime.backends.readout import DoubleArray, HighestSpan, Readout
from siren_runtime.text.spans import Cut, ends_a_sentence, places, span_of
from siren_runtime.text.tokenizer import Encoded

Place = tuple[int, int, int]  # the size of a span, its first token and the one behind its last
Highest = dict[str, tuple[HighestSpan, ...]]  # by each head's name
# The first token of each span and the one behind its last -> its mean, float32 [spans, neurons].
Means = Callable[[Sequence[tuple[int, int]]], FloatArray]


class StreamSpans:
    """Scores the spans of one stream, each once."""

    def __init__(
        self,
        sizes: Sequence[int],
        readout: Readout,
        head: Callable[[FloatArray], Outputs],
    ) -> None:
        """Begin with no span.

        Args:
            sizes: in tokens, ascending.
            head: evaluates the heads on means, float32 [spans, neurons].
        """
        self._sizes, self._readout, self._head = sizes, readout, head
        self._scored: dict[Place, tuple[Cut, DoubleArray]] = {}
        self._last: tuple[list[Place], Highest] = [], self._highest([])

    def forget(self, tokens: int = 0) -> None:
        """Forget the spans that reach beyond the first `tokens`."""
        self._scored = {place: one for place, one in self._scored.items() if place[2] <= tokens}
        self._last = [], self._highest([])

    def of(self, encoded: Encoded, text: str, first: int, means: Means) -> Highest:
        """The highest spans of the text so far by each head's name; they stand in the cleaned text.

        Args:
            encoded, text: what is read, all of it, as tokens and as the cleaned text.
            first: the first token that counts.
            means: of spans from that one on.

        Returns:
            The same object as before where nothing changed.

        Raises:
            BackendError: the engine failed, or gave what is not finite.
        """
        found = self._complete(encoded, text, first)
        if found != self._last[0]:
            new = [place for place in found if place not in self._scored]
            if new:
                self._score(new, encoded, means)
            self._last = found, self._highest(found)
        return self._last[1]

    def _complete(self, encoded: Encoded, text: str, first: int) -> list[Place]:
        """The spans that the next token leaves as they are, from token `first` on."""
        count = len(encoded.ids)
        if count - first <= self._sizes[0]:
            return []
        found = places(encoded, text, first, count, self._sizes)
        if ends_a_sentence(text):
            return found
        return [place for place in found if place[2] < count]

    def _score(self, new: list[Place], encoded: Encoded, means: Means) -> None:
        parts = [*dict.fromkeys((start, stop) for _, start, stop in new)]
        rows = self._readout.finite(self._head(means(parts)))
        by_part = dict(zip(parts, rows, strict=True))
        for place in new:
            size, start, stop = place
            cut = Cut(size, start, stop, span_of(encoded, start, stop))
            self._scored[place] = cut, by_part[start, stop]

    def _highest(self, found: list[Place]) -> Highest:
        scored = [self._scored[place] for place in found]
        return {name: self._readout.highest_spans(name, scored) for name in self._readout.columns}
