"""The keys and values of streams, in buffers that grow in steps and are never copied in a step."""

from collections.abc import Sequence

import numpy as np

from siren_runtime.backends.outputs import CacheArray
from siren_runtime.bundle.graphs import CacheSpec
from siren_runtime.errors import BackendError

_GRANULE = 16  # tokens; attention reads whole granules
_GROWTH = 1.25
ALL_BUFFERS = slice(None)


class KeyValueCache:
    """Buffers [slots, heads, capacity, dim] of every block; each stream has a slot.

    Capacity grows by a quarter at least, block by block, so that copying costs a few tokens'
    worth a token and never more than one block's memory beside the cache. The buffers of blocks
    with a window grow to a ring that holds it, and no further.
    """

    def __init__(self, spec: CacheSpec, max_tokens: int) -> None:
        self._spec = spec
        self._max_tokens = max_tokens
        self._slots = self._capacity = 0
        self._buffers: list[CacheArray] = [self._make(0, 0)] * spec.buffers

    @property
    def slots(self) -> int:
        """How many there is room for."""
        return self._slots

    @property
    def bytes_per_stream(self) -> int:
        """What one slot takes now, in bytes."""
        return sum(self._lengths()) * self._spec.bytes_per_token // self._spec.buffers

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for `tokens` in each of `slots`, keeping what is there.

        Raises:
            BackendError: there is no memory for that; nothing has changed.
        """
        if slots <= self._slots and tokens <= self._capacity:
            return
        if tokens > self._capacity:
            wanted = -(-max(tokens, int(self._capacity * _GROWTH)) // _GRANULE) * _GRANULE
            capacity = max(tokens, min(wanted, self._max_tokens))
        else:
            capacity = self._capacity
        slots = max(slots, self._slots)
        try:
            for index, length in enumerate(self._spec.lengths(capacity)):
                old, new = self._buffers[index], self._make(slots, length)
                new[: self._slots, :, : old.shape[2]] = old
                self._buffers[index] = new
        except BaseException as error:
            for index, length in enumerate(self._lengths()):  # streams that need no more go on
                kept = self._buffers[index][: self._slots, :, :length]
                self._buffers[index] = np.ascontiguousarray(kept)
            if not isinstance(error, MemoryError):
                raise
            raise BackendError(
                f"no memory for {slots} streams of {capacity} tokens; close some, or open them "
                "with a smaller max_tokens"
            ) from error
        self._slots, self._capacity = slots, capacity

    def rows(self, start: int, stop: int, buffers: slice = ALL_BUFFERS) -> list[CacheArray]:
        """Views of the slots from `start` to `stop`, in some of the buffers."""
        return [buffer[start:stop] for buffer in self._buffers[buffers]]

    def write(
        self,
        slots: Sequence[int],
        positions: Sequence[int],
        present: list[CacheArray],
        rows: Sequence[int],
        counts: Sequence[int],
        buffers: slice = ALL_BUFFERS,
    ) -> None:
        """Keep the first `counts[i]` tokens of `present`'s `rows[i]` in `slots[i]`, from
        `positions[i]` on; of those that a ring cannot hold, the last.

        Args:
            buffers: which ones `present` is for.
        """
        token = np.concatenate([np.arange(count) for count in counts])
        slot, row, first, count = (np.repeat(x, counts) for x in (slots, rows, positions, counts))
        of_length = {}
        for length in set(self._lengths()):
            held = count - token <= length
            places = (first + token)[held] % length
            of_length[length] = slot[held], places, row[held], token[held]
        for buffer, new in zip(self._buffers[buffers], present, strict=True):
            kept_slot, place, kept_row, kept_token = of_length[buffer.shape[2]]
            buffer[kept_slot, :, place] = new[kept_row, :, kept_token]

    def move(self, source: int, target: int) -> None:
        """Copy a slot over another."""
        for buffer in self._buffers:
            buffer[target] = buffer[source]

    def release(self) -> None:
        """Free the buffers; `reserve` makes new ones."""
        self._slots = self._capacity = 0
        self._buffers = [self._make(0, 0)] * self._spec.buffers

    def _lengths(self) -> list[int]:
        """The tokens that each buffer has room for."""
        return self._spec.lengths(self._capacity)

    def _make(self, slots: int, tokens: int) -> CacheArray:
        return np.zeros((slots, self._spec.heads, tokens, self._spec.dim), self._spec.dtype)
