"""Read the pending tokens of many streams: in batches over a key/value cache, or by re-encoding."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from siren_runtime.backends.base import Backend, SpansBackend, StreamBackend
from siren_runtime.backends.batching import micro_batches, right_pad
from siren_runtime.backends.outputs import (
    DoubleArray,
    FloatArray,
    neurons_of_chunk,
    no_verdict,
    not_finite,
    pooled_rows,
)
from siren_runtime.backends.readout import Readout
from siren_runtime.errors import InterruptedCall, SirenError
from siren_runtime.text.deadline import Deadline

from .cache import KeyValueCache
from .spans import Amid
from .state import StreamState

# Idle slots between two busy ones that are cheaper to run along than to read all weights twice.
_GAP = 8

Failures = dict[StreamState, SirenError]
Between = Callable[[], None]  # what is done between two engine runs; it may read other streams


def nothing() -> None:
    """Do nothing between two engine runs."""


class StreamReader(Protocol):
    """Reads streams' tokens. Not safe to share between threads."""

    @property
    def max_tokens(self) -> int:
        """The tokens that a stream may hold."""

    @property
    def bytes_per_token(self) -> int:
        """The memory that a token takes, in bytes."""

    def usable(self, tokens: int, written: int) -> int:
        """How many of a stream's first `tokens` need not be read again: all of them, or none.

        Args:
            written: the most tokens that the stream held since it was empty.
        """

    def add(self, state: StreamState) -> None:
        """Take a stream in."""

    def remove(self, state: StreamState) -> None:
        """Let a stream go and free its memory."""

    def read(self, states: Mapping[StreamState, Deadline], between: Between = nothing) -> Failures:
        """Read all that is pending in `states`, of each until its deadline.

        Args:
            between: called between two engine runs.

        Returns:
            The streams that failed and why; the others are right.
        """

    def bytes_of(self, state: StreamState) -> int:
        """The memory that a stream takes, in bytes."""


class IncrementalReader:
    """Pays for new tokens only. Streams next to each other in the cache share a batch."""

    def __init__(self, backend: StreamBackend, max_tokens: int, readout: Readout) -> None:
        self.max_tokens = max_tokens
        self._readout = readout
        self._neurons = backend.neurons
        self.bytes_per_token = backend.cache.bytes_per_token + 4 * self._neurons
        self._backend = backend
        self._cache = KeyValueCache(backend.cache, max_tokens)
        self._slots: list[StreamState] = []

    def usable(self, tokens: int, written: int) -> int:
        """None where rings hold newer tokens, since taken back, in the place of some they need."""
        return self._backend.cache.usable(tokens, written)

    def add(self, state: StreamState) -> None:
        """Give the stream the next slot."""
        self._slots.append(state)

    def remove(self, state: StreamState) -> None:
        """Free the stream's slot; the last stream moves there, so that slots stay dense."""
        slot, last = self._slots.index(state), len(self._slots) - 1
        if slot != last and last < self._cache.slots:  # else nothing of the last was read yet
            self._cache.move(last, slot)
        self._slots[slot] = self._slots[last]
        self._slots.pop()
        if not self._slots:
            self._cache.release()

    def read(self, states: Mapping[StreamState, Deadline], between: Between = nothing) -> Failures:
        """Step all streams that have tokens pending, until none has."""
        failures: Failures = {}
        has_begun = False
        while busy := [state for state in states if state.pending and state not in failures]:
            if has_begun:
                between()
            has_begun = True
            slots = {state: slot for slot, state in enumerate(self._slots)}
            failures |= (late := ended(busy, states))
            for group in neighbours(sorted(slots[s] for s in busy if s not in late)):
                failures |= self._step(group, self._read_chunk)
        lacking = [s for s in states if s not in failures and s.ids and s.readouts[-1] is None]
        return failures | self._read_heads(lacking)

    def bytes_of(self, state: StreamState) -> int:
        """The stream's slot of the cache and its rows."""
        return self._cache.bytes_per_stream + state.bytes

    def _step(self, slots: Sequence[int], read: Callable[[Sequence[int]], None]) -> Failures:
        """Read a chunk of each of `slots`. If one spoils the batch, each is read alone."""
        try:
            read(slots)
        except SirenError as error:
            if len(slots) == 1:
                return {self._slots[slots[0]]: error}
            failures: Failures = {}
            for slot in slots:
                failures |= self._step([slot], read)
            return failures
        return {}

    def _read_heads(self, states: Sequence[StreamState]) -> Failures:
        """Read all heads off the last tokens' sums; the graph gave the primary head's scores."""
        if not states:
            return {}
        try:
            sums, counts = zip(*(state.last() for state in states), strict=True)
            pooled = pooled_rows(np.stack(sums), np.array(counts), self._backend.head_spec)
            readouts = self._readout.rows(self._backend.head(pooled))
            check_finite(readouts, readouts)
        except SirenError as error:
            if len(states) == 1:
                return {states[0]: error}
            failures: Failures = {}
            for state in states:
                failures |= self._read_heads([state])
            return failures
        readouts[:, 0] = [state.scores[-1] for state in states]
        for state, readout in zip(states, readouts, strict=True):
            state.readouts[-1] = readout
        return {}

    def _of_all_heads(self, summed: FloatArray, count: int, readout: FloatArray) -> FloatArray:
        """The readouts of all heads at each token of a chunk, [chunk, width].

        Args:
            summed: what the graph summed up to each of these tokens.
            count: tokens before them in the sums.
            readout: the primary head's, which the graph gave.
        """
        counts = np.arange(count + 1, count + len(summed) + 1)
        pooled = pooled_rows(summed, counts, self._backend.head_spec)
        rows = self._readout.rows(self._backend.head(pooled))
        rows[:, : readout.shape[1]] = readout
        check_finite(summed, rows)
        return rows

    def _read_chunk(self, slots: Sequence[int]) -> None:
        """Read the next tokens of `slots`; those between them run along idle.

        Raises:
            BackendError: the engine failed, or gave what is not finite; nothing has changed.
        """
        states = [self._slots[slot] for slot in slots]
        first, stop = slots[0], slots[-1] + 1
        width = width_of([state.next_chunk(self._backend.max_chunk) for state in states])
        chunks = [state.next_chunk(width) for state in states]
        longest = max(len(s.ids) + n for s, n in zip(states, chunks, strict=True))
        self._cache.reserve(len(self._slots), longest)

        batch = stop - first
        input_ids = np.zeros((batch, width), np.int64)
        lengths, counts = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        sums = np.zeros((batch, self._neurons), np.float32)
        for slot, state, chunk in zip(slots, states, chunks, strict=True):
            row = slot - first
            input_ids[row, :chunk] = state.pending[:chunk]
            lengths[row] = len(state.ids)
            if state.aggregation is None:
                sums[row], counts[row] = state.summed()
        outputs = self._backend.step(
            input_ids, lengths, self._cache.rows(first, stop), sums, counts
        )

        streamed = self._readout.of_stream(outputs)
        rows, readouts = [], []
        for slot, state, chunk in zip(slots, states, chunks, strict=True):
            summed = outputs.feature_sums[slot - first, :chunk]
            readout = streamed[slot - first, :chunk]
            check_finite(summed, readout)
            if state.aggregation is not None:
                neurons = neurons_of_chunk(summed, self._backend.head_spec)
                summed, pooled = state.folded(neurons)
                readout = self._readout.rows(self._backend.head(pooled))
                check_finite(summed, readout)
            elif self._readout.smoothing is not None and len(self._readout.columns) > 1:
                readout = self._of_all_heads(summed, int(counts[slot - first]), readout)
            rows.append(summed)
            readouts.append(readout)
        positions = [len(state.ids) for state in states]
        relative = [slot - first for slot in slots]
        self._cache.write(slots, positions, outputs.present, relative, chunks)
        for state, summed, readout in zip(states, rows, readouts, strict=True):
            state.commit(summed, readout, whole=readout.shape[1] == self._readout.width)


class ReencodingReader:
    """Scores all that a stream holds anew at each feed, for graphs that have no cache.

    All tokens of a feed get the score after its last.
    """

    def __init__(self, backend: Backend, max_tokens: int, readout: Readout) -> None:
        self.max_tokens = max_tokens
        self._readout = readout
        self.bytes_per_token = 0
        self._backend = backend

    def usable(self, tokens: int, written: int) -> int:
        """All: what is to be read, is read from its start anyway."""
        return tokens

    def add(self, state: StreamState) -> None:
        """Do nothing: there is no cache."""

    def remove(self, state: StreamState) -> None:
        """Do nothing: there is no cache."""

    def read(self, states: Mapping[StreamState, Deadline], between: Between = nothing) -> Failures:
        """Score the streams together."""
        busy = [state for state in states if state.changed]
        sequences = [state.ids + state.pending for state in busy]
        failures: Failures = {}
        budget = self._backend.token_budget
        for number, batch in enumerate(micro_batches([*map(len, sequences)], budget)):
            if number:
                between()
            failures |= (late := ended([busy[i] for i in batch], states))
            left = [i for i in batch if busy[i] not in late]
            if left:
                failures |= self._score([busy[i] for i in left], [sequences[i] for i in left])
        return failures

    def bytes_of(self, state: StreamState) -> int:
        """Nothing beside the text."""
        return state.bytes

    def _score(self, states: list[StreamState], sequences: list[list[int]]) -> Failures:
        try:
            readouts = self._read(states, sequences)
        except SirenError as error:
            if len(states) == 1:
                return {states[0]: error}
            failures: Failures = {}
            for state, ids in zip(states, sequences, strict=True):
                failures |= self._score([state], [ids])
            return failures
        for state, readout in zip(states, readouts, strict=True):
            state.read_all(readout)
        return {}

    def _read(self, states: list[StreamState], sequences: list[list[int]]) -> FloatArray:
        """The readouts after all tokens, float32 [streams, width]; what the same pass tells of new
        spans goes into the states.
        """
        tokens = right_pad(sequences)
        spans = [(row, *span) for row, state in enumerate(states) for span in state.new_spans]
        if spans and isinstance(self._backend, SpansBackend):
            outputs, of_spans = self._backend.run_spans(*tokens, spans)
            found: list[dict[tuple[int, int], DoubleArray]] = [{} for _ in states]
            for (row, start, stop), told in zip(spans, self._readout.finite(of_spans), strict=True):
                found[row][start, stop] = told
            for state, ids, rows in zip(states, sequences, found, strict=True):
                state.amid = Amid(len(ids), rows)
        else:
            outputs = self._backend.run(*tokens)
        readouts = self._readout.rows(outputs)
        check_finite(readouts, readouts)
        return readouts


def ended(busy: Sequence[StreamState], deadlines: Mapping[StreamState, Deadline]) -> Failures:
    """The streams whose time is up, or whose caller has gone."""
    found: Failures = {}
    for state in busy:
        try:
            deadlines[state].check(f"before {len(state.pending)} tokens of the stream were read")
        except InterruptedCall as error:  # noqa: PERF203 - each stream has its own
            found[state] = error
    return found


def neighbours(slots: Iterable[int]) -> list[list[int]]:
    """Split ascending slots where the gap between two is wide."""
    groups: list[list[int]] = []
    for slot in slots:
        if groups and slot - groups[-1][-1] <= _GAP:
            groups[-1].append(slot)
        else:
            groups.append([slot])
    return groups


def width_of(lengths: Sequence[int]) -> int:
    """The widest chunk of which at least half is tokens and not padding."""
    width, tokens, ascending = 1, 0, sorted(lengths)
    for index, length in enumerate(ascending):
        longer = len(ascending) - index
        if 2 * (tokens + longer * length) >= len(ascending) * length:
            width = length
        tokens += length
    return width


def check_finite(sums: FloatArray, readouts: FloatArray) -> None:
    """Refuse what would make no verdict.

    Raises:
        BackendError: a value is not finite.
    """
    if not_finite({"score": readouts, "feature_sums": sums}):
        raise no_verdict("score of a stream")
