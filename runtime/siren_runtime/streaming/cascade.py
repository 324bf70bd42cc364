"""Read streams segment by segment: those that an exit decides on wait behind it."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from siren_runtime.backends.exits import Exits
from siren_runtime.backends.onnxruntime.stream_cascade import CascadeStreamBackend
from siren_runtime.backends.outputs import StreamOutputs
from siren_runtime.backends.readout import Readout
from siren_runtime.text.deadline import Deadline

from .reader import (
    Between,
    Failures,
    IncrementalReader,
    check_finite,
    ended,
    neighbours,
    nothing,
    width_of,
)
from .state import StreamState
from .waiting import Waiting

# Tokens that wait before a segment at most: then it reads them, whatever the exit says.
MOST_WAITING = 512


class CascadeReader(IncrementalReader):
    """Reads new tokens by the first segment. Where its exit decides on the text so far they wait;
    where it does not, the next segment reads all that waits at once, and so on. Under decision
    rules an exit must decide at each of the new tokens.

    Streams on which no exit may decide are read by all segments.
    """

    def __init__(self, backend: CascadeStreamBackend, max_tokens: int, readout: Readout) -> None:
        super().__init__(backend, max_tokens, readout)
        self._cascade, self._exits = backend, Exits(backend.cascade)

    def add(self, state: StreamState) -> None:
        """Give the stream the next slot."""
        super().add(state)
        if state.early:
            state.waiting = Waiting([segment.taken for segment in self._cascade.segments])

    def read(self, states: Mapping[StreamState, Deadline], between: Between = nothing) -> Failures:
        """Read all streams until there is a verdict on each."""
        early = [state for state in states if state.may_leave]
        others = {state: states[state] for state in states if not state.may_leave}
        failures = super().read(others, between)
        has_begun = bool(others)
        while due := self._due([state for state in early if state not in failures]):
            if has_begun:
                between()
            has_begun = True
            number = min(due.values())
            busy = [state for state in due if due[state] == number]
            failures |= (late := ended(busy, states))
            slots = {state: slot for slot, state in enumerate(self._slots)}
            for group in neighbours(sorted(slots[s] for s in busy if s not in late)):
                failures |= self._step(group, partial(self._read_segment, number))
        return failures

    def _due(self, states: Sequence[StreamState]) -> dict[StreamState, int]:
        """The segment that each stream is to be read by next, of those without a verdict."""
        found = {state: self._next(state) for state in states}
        return {state: number for state, number in found.items() if number is not None}

    def _next(self, state: StreamState) -> int | None:
        """The segment that reads next, or None once there are verdicts, which are noted."""
        last, waiting = len(self._cascade.segments) - 1, state.waiting
        most = 1 if state.to_end else MOST_WAITING
        for number in range(last, 0, -1):
            if waiting.before(number) >= most:
                return number
        if state.pending:
            return 0
        for number in range(last):
            tokens = state.unjudged(number)
            if tokens.start >= tokens.stop:
                continue
            decided = self._exits.decide(number, np.array(state.scores[tokens], np.float32))
            if np.isnan(decided).any():
                return number + 1
            state.judge(tokens, decided)
        number = waiting.read.count(len(state.ids)) - 1  # of those that have read the last token
        state.exit = self._cascade.segments[number].depth if number < last else None
        state.judged = len(state.ids)
        return None

    def _read_segment(self, number: int, slots: Sequence[int]) -> None:
        """Read the next tokens of `slots` by a segment; those between them run along idle.

        Raises:
            BackendError: as `_read_chunk`; nothing has changed.
        """
        segment = self._cascade.segments[number]
        states = [self._slots[slot] for slot in slots]
        first, stop = slots[0], slots[-1] + 1
        starts = [state.waiting.read[number] for state in states]
        most = [len(s.waiting_ids(number)) for s in states]
        most = [min(count, self._backend.max_chunk) for count in most]
        width = width_of(most)
        chunks = [min(count, width) for count in most]
        longest = max(start + chunk for start, chunk in zip(starts, chunks, strict=True))
        self._cache.reserve(len(self._slots), longest)

        batch = stop - first
        input_ids = np.zeros((batch, width), np.int64)
        lengths, counts = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        sums = np.zeros((batch, self._neurons), np.float32)
        kept = {
            name: np.zeros((batch, width, size), np.float32) for name, size in segment.taken.items()
        }
        for slot, state, start, chunk in zip(slots, states, starts, chunks, strict=True):
            row = slot - first
            input_ids[row, :chunk] = state.waiting_ids(number)[:chunk]
            lengths[row] = start
            sums[row], counts[row] = state.summed(start)
            for name, values in kept.items():
                values[row, :chunk] = state.waiting.states(number, name, chunk)
        past = self._cache.rows(first, stop, segment.buffers)
        outputs = self._cascade.run(number, input_ids, lengths, past, sums, counts, kept)

        scores = outputs.score
        if outputs.logits is not None:
            whole = StreamOutputs(outputs.score, outputs.logits, outputs.sums, [])
            scores = self._readout.of_stream(whole)[..., 0]
            for slot, chunk in zip(slots, chunks, strict=True):
                row = slot - first
                check_finite(outputs.sums[row, :chunk], scores[row, :chunk])
        relative = [slot - first for slot in slots]
        self._cache.write(slots, starts, outputs.present, relative, chunks, segment.buffers)
        for row, state, chunk in zip(relative, states, chunks, strict=True):
            states_of_row = {name: value[row, :chunk] for name, value in outputs.states.items()}
            new = outputs.sums[row, :chunk], scores[row, :chunk], states_of_row
            state.advance(number, segment.columns, *new)
