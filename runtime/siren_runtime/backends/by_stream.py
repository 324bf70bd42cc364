"""Score whole texts with the streaming graph, so that a guard that streams holds its weights once.

ONNX Runtime pre-packs the weights of each session for itself: a session over score.onnx beside
one over stream.onnx would hold every matrix twice.
"""

import numpy as np

from .base import StreamBackend
from .outputs import Outputs, TokenArray, pooled_rows


class ScoreByStream:
    """A `Backend` over a `StreamBackend`: each text is one chunk after an empty past."""

    def __init__(self, stream: StreamBackend) -> None:
        self._stream = stream
        self.name = stream.name
        self.token_budget = stream.token_budget

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded texts, as `Backend.run`."""
        batch = len(input_ids)
        cache, head, none = self._stream.cache, self._stream.head_spec, np.zeros(batch, np.int64)
        shape = batch, cache.heads, 1, cache.dim
        outputs = self._stream.step(
            input_ids,
            none,
            [np.zeros(shape, cache.dtype)] * cache.buffers,
            np.zeros((batch, head.features), np.float32),
            none,
            present=False,
        )
        lengths = attention_mask.sum(axis=1)
        rows = outputs.feature_sums[np.arange(batch), lengths - 1]
        return self._stream.head(pooled_rows(rows, lengths, head))
