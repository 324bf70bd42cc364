"""Spans of a text that grows: parts whose own mean is scored, as in whole texts.

A stream keeps the running sums of its neurons, so a span's mean is a difference of two. A span
counts once it is complete: one that the end of the text cuts will be another with the next token,
and a largest of all of those would be larger than the largest that thresholds were chosen by.
"""

from collections.abc import Callable, Sequence

from siren_runtime.backends.outputs import FloatArray, Outputs
from siren_runtime.backends.readout import DoubleArray, HighestSpan, Readout
from siren_runtime.text.spans import Cut, cuts, ends_a_sentence
from siren_runtime.text.tokenizer import Encoded, Tokenizer

from .growing_text import Tokens
from .state import StreamState


class StreamSpans:
    """Scores the spans of one stream, each once."""

    def __init__(
        self,
        sizes: Sequence[int],
        tokenizer: Tokenizer,
        readout: Readout,
        head: Callable[[FloatArray], Outputs],
    ) -> None:
        """Begin with no span.

        Args:
            sizes: in tokens, ascending.
            head: evaluates the heads on means, float32 [spans, neurons].
        """
        self._sizes, self._tokenizer, self._readout, self._head = sizes, tokenizer, readout, head
        self._rows: dict[tuple[int, int], DoubleArray] = {}  # by first token and the one behind

    def forget(self, tokens: int = 0) -> None:
        """Forget the spans that reach beyond the first `tokens`."""
        self._rows = {place: row for place, row in self._rows.items() if place[1] <= tokens}

    def of(self, state: StreamState, tokens: Tokens) -> dict[str, tuple[HighestSpan, ...]]:
        """The highest spans of the text so far by each head's name; they stand in the cleaned text.

        Args:
            state, tokens: what is read of the stream, all of it.

        Raises:
            BackendError: the engine failed, or gave what is not finite.
        """
        found = self._complete(state, tokens)
        new = [
            *dict.fromkeys((c.start, c.stop) for c in found if (c.start, c.stop) not in self._rows)
        ]
        if new:
            rows = self._readout.finite(self._head(state.means(new)))
            self._rows |= dict(zip(new, rows, strict=True))
        scored = [(cut, self._rows[cut.start, cut.stop]) for cut in found]
        return {name: self._readout.highest_spans(name, scored) for name in self._readout.columns}

    def _complete(self, state: StreamState, tokens: Tokens) -> list[Cut]:
        special = self._tokenizer.special_before if tokens.text else 0
        count, first = len(state.ids), max(state.context - special, 0)
        if count - special - first <= self._sizes[0]:
            return []
        start = tokens.start
        offsets = [(begin - start, end - start) for begin, end in state.offsets[special:count]]
        encoded = Encoded(state.ids[special:], offsets)
        found = cuts(encoded, tokens.text, first, count - special, self._sizes, special + first)
        if ends_a_sentence(tokens.text):
            return found
        return [cut for cut in found if cut.stop < count]
