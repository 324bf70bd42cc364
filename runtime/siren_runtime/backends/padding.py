"""Run batches padded to few shapes, so that a GPU can keep each shape as a CUDA graph."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from siren_runtime.bundle.arguments import whole_number
from siren_runtime.errors import InputError

from .outputs import Outputs, TokenArray
from .process import OpeningProcess
from .shapes import Profile, choose_profile, default_buckets, max_batch

# A GPU wants much work at once; the best figure was not measured.
_TOKEN_BUDGET = 8192
_T = TypeVar("_T")


class Runner(Protocol):
    """Runs one profile, for one thread."""

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Run a batch whose shape lies in the profile."""


class OfThread(Generic[_T]):
    """A runner for each profile and thread, opened at its first use."""

    def __init__(self, open_runner: Callable[[int], _T]) -> None:
        """Take profile number -> runner."""
        self._open_runner = open_runner
        self._local = threading.local()
        self._process = OpeningProcess()

    def of(self, profile: int) -> _T:
        """The calling thread's runner of a profile.

        Raises:
            BackendError: this process was forked from the one that opened the engine.
        """
        self._process.check()
        runners: dict[int, _T] = self._local.__dict__.setdefault("runners", {})
        if profile not in runners:
            runners[profile] = self._open_runner(profile)
        return runners[profile]


class PaddedBackend:
    """Profiles, of a plan or our own, over runners: one for each profile and thread."""

    def __init__(
        self,
        name: str,
        profiles: Sequence[Profile],
        open_runner: Callable[[int], Runner],
        buckets: Sequence[int] | None = None,
    ) -> None:
        """Take profile number -> runner, and the lengths that texts are padded to.

        Raises:
            InputError: the buckets do not ascend from 1.
        """
        self.name = name
        self.token_budget = min(
            _TOKEN_BUDGET, max(profile.max.batch * profile.max.length for profile in profiles)
        )
        longest = max(profile.max.length for profile in profiles)
        self._buckets = default_buckets(longest) if buckets is None else checked_buckets(buckets)
        self._profiles = list(profiles)
        self._runners = OfThread(open_runner)

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded `input_ids` [batch, sequence]; the mask is 1 on real tokens.

        A batch beyond the largest is run in parts.

        Raises:
            BackendError: a text is longer than the profiles take, or the GPU failed.
        """
        batch, length = input_ids.shape
        size = max_batch(self._profiles, length)
        parts = [
            self._run(input_ids[start : start + size], attention_mask[start : start + size])
            for start in range(0, batch, size)
        ]
        values = zip(*(part.values for part in parts), strict=True)
        return Outputs.of([np.concatenate(of_parts) for of_parts in values])

    def _run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        batch, length = input_ids.shape
        choice = choose_profile(self._profiles, self._buckets, batch, length)
        ids, mask = np.zeros(choice.extent[:2], np.int64), np.zeros(choice.extent[:2], np.int64)
        ids[:batch, :length], mask[:batch, :length] = input_ids, attention_mask
        mask[batch:, 0] = 1  # a row of padding has one token, so that its mean is a number
        outputs = self._runners.of(choice.profile).run(ids, mask)
        return Outputs.of([values[:batch] for values in outputs.values])


def checked_buckets(buckets: Sequence[int]) -> list[int]:
    """Return the lengths that texts are padded to.

    Raises:
        InputError: they are no list of whole numbers that ascend from 1.
    """
    if isinstance(buckets, str | bytes) or not isinstance(buckets, Iterable):
        raise InputError(f"buckets must be a list of lengths, found {buckets!r}")
    lengths = [whole_number("a length of buckets", length, 1) for length in buckets]
    if sorted(set(lengths)) != lengths:
        raise InputError(f"buckets must be lengths that ascend from 1, found {lengths}")
    return lengths
