"""Score whole texts with the streaming graph, so that a guard that streams holds its weights once.

ONNX Runtime pre-packs the weights of each session for itself: a session over score.onnx beside
one over stream.onnx would hold every matrix twice.
"""

from collections.abc import Sequence

import numpy as np

from .base import StreamBackend
from .outputs import CacheArray, FloatArray, Outputs, TokenArray, pooled_rows, span_means


class ScoreByStream:
    """A `SpansBackend` over a `StreamBackend`: each text is one chunk after an empty past."""

    reads_amid = True

    def __init__(self, stream: StreamBackend) -> None:
        self._stream = stream
        self.name = stream.name
        self.token_budget = stream.token_budget

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded texts, as `Backend.run`."""
        return self._whole(self.sums(input_ids), attention_mask)

    def run_spans(
        self,
        input_ids: TokenArray,
        attention_mask: TokenArray,
        spans: Sequence[tuple[int, int, int]],
    ) -> tuple[Outputs, Outputs]:
        """As `SpansBackend.run_spans`; a span's mean is `span_means`."""
        sums = self.sums(input_ids)
        rows, starts, stops = np.array(spans).T
        before = np.where((starts > 0)[:, None], sums[rows, starts - 1], np.float32(0))
        last, first = sums[rows, stops - 1], sums[rows, 0]
        pooled = span_means(starts, stops, before=before, last=last, first=first)
        return self._whole(sums, attention_mask), self._stream.head(pooled)

    def _whole(self, sums: FloatArray, attention_mask: TokenArray) -> Outputs:
        lengths = attention_mask.sum(axis=1)
        rows = sums[np.arange(len(sums)), lengths - 1]
        return self._stream.head(pooled_rows(rows, lengths, self._stream.head_spec))

    def sums(self, input_ids: TokenArray) -> FloatArray:
        """The running sums of the neurons of texts, [batch, sequence, neurons]."""
        batch = len(input_ids)
        none = np.zeros(batch, np.int64)
        return self._stream.step(
            input_ids,
            none,
            self.nothing(batch),
            np.zeros((batch, self._stream.neurons), np.float32),
            none,
            present=False,
        ).feature_sums

    def nothing(self, batch: int) -> list[CacheArray]:
        """A past of which nothing counts."""
        cache = self._stream.cache
        shape = batch, cache.heads, 1, cache.dim
        return [np.zeros(shape, cache.dtype)] * cache.buffers
