"""Score whole texts with the segments of a streaming graph: rows of a batch leave between them."""

import numpy as np

from siren_runtime.backends.base import Leave
from siren_runtime.backends.by_stream import ScoreByStream
from siren_runtime.backends.outputs import FloatArray, Outputs, TokenArray, pooled_rows

from .stream_cascade import CascadeStreamBackend


class LeaveByStream(ScoreByStream):
    """A `LeavingBackend` over the segments of the streaming graph; else as `ScoreByStream`."""

    def __init__(self, stream: CascadeStreamBackend) -> None:
        super().__init__(stream)
        self.cascade, self._segments = stream.cascade, stream

    def run_leaving(
        self, input_ids: TokenArray, attention_mask: TokenArray, leave: Leave
    ) -> tuple[TokenArray, Outputs | None]:
        """Score right-padded texts, of which rows may leave, as `LeavingBackend.run_leaving`."""
        backend, last = self._segments, len(self._segments.segments) - 1
        rows, lengths = np.arange(len(input_ids)), attention_mask.sum(axis=1)
        sums = np.zeros((len(input_ids), backend.neurons), np.float32)
        states: dict[str, FloatArray] = {}
        for number, segment in enumerate(backend.segments):
            past, zeros = self.nothing(len(rows))[segment.buffers], np.zeros(len(rows), np.int64)
            found = backend.run(
                number, input_ids, zeros, past, np.zeros_like(sums), zeros, states, present=False
            )
            ends = np.arange(len(rows)), lengths - 1
            sums[:, segment.columns] = found.sums[ends]
            if number == last:
                break
            stays = ~leave(number, rows, found.score[ends])
            if not stays.any():
                return rows[stays], None
            states |= found.states
            states = {name: value[stays] for name, value in states.items()}
            rows, lengths, sums, input_ids = (x[stays] for x in (rows, lengths, sums, input_ids))
        return rows, backend.head(pooled_rows(sums, lengths, backend.head_spec))
