"""Score whole texts with the streaming graph, so that a guard that streams holds its weights once.

ONNX Runtime pre-packs the weights of each session for itself: a session over score.onnx beside
one over stream.onnx would hold every matrix twice.
"""

import numpy as np

from .base import Outputs, StreamBackend, TokenArray


class ScoreByStream:
    """A `Backend` over a `StreamBackend`: each text is one chunk after an empty past."""

    def __init__(self, stream: StreamBackend) -> None:
        self._stream = stream
        self.name = stream.name
        self.token_budget = stream.token_budget

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded texts, as `Backend.run`."""
        batch = len(input_ids)
        layout, none = self._stream.layout, np.zeros(batch, np.int64)
        shape = batch, layout.heads, 1, layout.dim
        outputs = self._stream.step(
            input_ids,
            none,
            [np.zeros(shape, layout.dtype)] * layout.buffers,
            np.zeros((batch, self._stream.features), np.float32),
            none,
            present=False,
        )
        lengths = attention_mask.sum(axis=1)
        sums = outputs.feature_sums[np.arange(batch), lengths - 1]
        return self._stream.head((sums / lengths[:, None]).astype(np.float32))
