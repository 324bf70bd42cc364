"""Spans of a conversation with a generator, by the running sums of its neurons."""

from collections.abc import Callable, Sequence

import numpy as np

from siren_runtime.backends.outputs import DoubleArray, FloatArray, span_means
from siren_runtime.streaming.spans import Highest, StreamSpans
from siren_runtime.text.tokenizer import Encoded

from .head import HeadEngine

_ROWS = 256  # that are summed at once


class ConversationSpans:
    """Scores the spans of what a generator has read, prompt and response, chat markup included.

    Spans stand in the text that the tokens say one by one.

    Attributes:
        first: the first token that counts.
    """

    def __init__(
        self, sizes: Sequence[int], head: HeadEngine, decode: Callable[[int], str]
    ) -> None:
        """Begin with no token.

        Args:
            sizes: in tokens, ascending.
            decode: the text that each token completes, told of one after the other.
        """
        self._reader, self._readout, self._decode = head.reader(), head.readout, decode
        self._spans = StreamSpans(sizes, head.readout, as_whole=False)
        self.first = 0
        self._ids, self._offsets, self._text = list[int](), list[tuple[int, int]](), ""
        self._total = np.zeros(head.width, np.float64)
        self._sums: list[FloatArray] = []  # of all tokens up to each, [width]

    def add(self, neurons: FloatArray, tokens: Sequence[int]) -> None:
        """Take in the next tokens and their neurons, float32 [tokens, width]."""
        for start in range(0, len(neurons), _ROWS):
            sums = np.cumsum(neurons[start : start + _ROWS], axis=0, dtype=np.float64)
            sums += self._total
            self._total = sums[-1]
            self._sums += list(sums.astype(np.float32))
        self._ids += tokens
        for token in tokens:
            piece, begin = self._decode(token), len(self._text)
            self._text += piece
            self._offsets.append((begin, len(self._text)))

    def of(self, count: int, *, ended: bool = False) -> Highest:
        """As `StreamSpans.of`, of the first `count` tokens, with which the text ends if `ended`.

        Raises:
            BackendError: the engine failed, or gave what is not finite.
        """
        text = self._text[: self._offsets[count - 1][1]]

        def encoded() -> Encoded:
            return Encoded(self._ids[:count], self._offsets[:count])

        return self._spans.of(count, text, self.first, encoded, self._rows, ended=ended)

    def _means(self, spans: Sequence[tuple[int, int]]) -> FloatArray:
        """The mean over each span, and over the first token of all, as `StreamState.means`."""
        starts, stops = np.array(spans).T
        sums, nothing = self._sums, np.zeros(len(self._total), np.float32)
        before = np.stack([sums[start - 1] if start else nothing for start in starts])
        last = np.stack([sums[stop - 1] for stop in stops])
        return span_means(starts, stops, before=before, last=last, first=sums[0])

    def _rows(self, spans: Sequence[tuple[int, int]]) -> DoubleArray:
        """What all heads make of each span, by its mean."""
        self._reader.pooled(len(spans))[:] = self._means(spans)
        return self._readout.finite(self._reader.run())
