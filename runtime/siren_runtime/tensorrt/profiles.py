"""Optimization profiles: the batches and lengths that a plan is compiled for, and their use."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from siren_runtime.errors import BackendError, InputError

_TYPICAL_LENGTH = 128
_MAX_BATCH = 32
_SMALLEST_BUCKET = 16


class Extent(NamedTuple):
    """Texts in a batch, and tokens of the longest."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan runs from `min` to `max` in batch and length, and is tuned for `opt`."""

    min: Extent
    opt: Extent
    max: Extent

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


class Choice(NamedTuple):
    """The profile that runs a batch, and what the batch is padded to."""

    profile: int
    extent: Extent


def default_profiles(max_length: int) -> list[Profile]:
    """One text at a time, and batches of 1 to 32, both up to `max_length` tokens."""
    typical = min(_TYPICAL_LENGTH, max_length)
    return [
        Profile(Extent(1, 1), Extent(1, typical), Extent(1, max_length)),
        Profile(Extent(1, 1), Extent(_MAX_BATCH // 4, typical), Extent(_MAX_BATCH, max_length)),
    ]


def parse_profile(text: str, max_length: int) -> Profile:
    """Read "min:opt:max", each BATCHxLENGTH, such as "1x1:8x128:32x512".

    Raises:
        InputError: it is not of that form, does not ascend, or exceeds `max_length` tokens.
    """
    try:
        low, opt, high = (
            Extent(*(int(size) for size in part.split("x", 1))) for part in text.split(":")
        )
    except (TypeError, ValueError):
        raise InputError(
            f"a profile is min:opt:max, each BATCHxLENGTH, such as 1x1:8x128:32x512; found {text!r}"
        ) from None
    profile = Profile(low, opt, high)
    check_profile(profile, max_length)
    return profile


def check_profile(profile: Profile, max_length: int) -> None:
    """Refuse a profile that no plan can have.

    Raises:
        InputError: it does not ascend from 1, or exceeds `max_length` tokens.
    """
    for low, opt, high in zip(profile.min, profile.opt, profile.max, strict=True):
        if not 1 <= low <= opt <= high:
            raise InputError(f"profile {profile}: batch and length must ascend from 1")
    if profile.max.length > max_length:
        raise InputError(
            f"profile {profile}: {profile.max.length} tokens, but the guard truncates texts to "
            f"{max_length}"
        )


def default_buckets(longest: int) -> list[int]:
    """Lengths that texts are padded to: powers of two and the midpoints between, to `longest`."""
    buckets = []
    size = _SMALLEST_BUCKET
    while size < longest:
        buckets += [size, size + size // 2]
        size *= 2
    return [*(bucket for bucket in buckets if bucket < longest), longest]


def max_batch(profiles: Sequence[Profile], length: int) -> int:
    """Return how many texts of `length` tokens fit in one run.

    Raises:
        BackendError: no profile takes texts that long.
    """
    batches = [profile.max.batch for profile in profiles if profile.max.length >= length]
    if not batches:
        longest = max(profile.max.length for profile in profiles)
        raise BackendError(
            f"a text has {length} tokens, the plan takes {longest} at most; compile it again with "
            f"siren build --profile 1x1:1x{length}:1x{length}"
        )
    return max(batches)


def choose(profiles: Sequence[Profile], buckets: Sequence[int], batch: int, length: int) -> Choice:
    """Choose the profile of the smallest largest batch that takes `batch` texts of `length`.

    The length is raised to the next bucket and the batch to the next power of two, as far as the
    profile allows, so that few shapes occur and each can be kept as a CUDA graph.

    Raises:
        BackendError: no profile takes them.
    """
    fitting = [
        (profile.max, index)
        for index, profile in enumerate(profiles)
        if profile.max.batch >= batch and profile.max.length >= length
    ]
    if not fitting:
        limits = ", ".join(str(profile.max) for profile in profiles)
        raise BackendError(
            f"a batch of {batch} texts by {length} tokens is more than the plan takes ({limits}); "
            f"compile it again with siren build --profile 1x1:{batch}x{length}:{batch}x{length}"
        )
    _, index = min(fitting)
    profile = profiles[index]
    position = bisect_left(buckets, length)
    bucket = buckets[position] if position < len(buckets) else length
    rounded = Extent(1 << (batch - 1).bit_length(), bucket)
    extent = Extent(
        *(
            min(max(wanted, low), high)
            for wanted, low, high in zip(rounded, profile.min, profile.max, strict=True)
        )
    )
    return Choice(index, extent)
