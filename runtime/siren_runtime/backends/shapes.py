"""Optimization profiles: the batches and lengths that a plan is compiled for, and their use."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from siren_runtime.bundle.graphs import BATCH, CHUNK, SEQUENCE, size_of
from siren_runtime.errors import BackendError, InputError

LEAST_STREAM_TOKENS = 8  # that a stream may hold: one that is full lets the older half go
_TYPICAL_LENGTH = 128
_MAX_BATCH = 32
_SMALLEST_BUCKET = 16
_STREAM_CHUNK = 256
_MAX_STREAMS = 8
_STREAM_TOKENS = 2048
_TYPICAL_PAST = 512
_SIZES = 1 << 31  # TensorRT's own are 32 bits wide


class Extent(NamedTuple):
    """Texts in a batch, and tokens of the longest; in the streaming graph, streams, new tokens of
    each, and tokens that the buffers of their past hold, which no other graph has.
    """

    batch: int
    length: int
    past: int = 0

    def __str__(self) -> str:
        return "x".join(map(str, self if self.past else self[:2]))

    def shape(self, symbolic: Sequence[int | str]) -> tuple[int, ...]:
        """The shape of a tensor whose free dimensions have the names of the graphs."""
        sizes = {BATCH: self.batch, SEQUENCE: self.length, CHUNK: self.length}

        def number(size: int | str) -> int:
            if isinstance(size, int):
                return size
            return sizes[size] if size in sizes else size_of(size, self.past)

        return tuple(map(number, symbolic))


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


def default_stream_profiles(max_length: int, context_length: int) -> list[Profile]:
    """One stream, and up to 8, of 2048 tokens or the guard's max_length, in chunks of 1 to 256."""
    past = min(max(_STREAM_TOKENS, max_length), context_length)
    chunk = min(_STREAM_CHUNK, context_length)
    typical = min(_TYPICAL_PAST, past)
    return [
        Profile(Extent(1, 1, 1), Extent(batch, 1, typical), Extent(batch, chunk, past))
        for batch in (1, _MAX_STREAMS)
    ]


def default_head_profiles() -> list[Profile]:
    """The rows of a chunk; the head reads no tokens."""
    return [Profile(Extent(1, 1), Extent(1, 1), Extent(_STREAM_CHUNK, 1))]


def parse_profile(text: str) -> Profile:
    """Read "min:opt:max", each BATCHxLENGTH, such as "1x1:8x128:32x512", or BATCHxCHUNKxPAST.

    Raises:
        InputError: it is not of that form.
    """
    try:
        low, opt, high = (
            Extent(*(int(size) for size in part.split("x", 2))) for part in text.split(":")
        )
    except (TypeError, ValueError):
        raise InputError(
            "a profile is min:opt:max, each BATCHxLENGTH, such as 1x1:8x128:32x512, or for streams "
            f"BATCHxCHUNKxPAST, such as 1x1x1:1x1x512:8x256x2048; found {text!r}"
        ) from None
    return Profile(low, opt, high)


def check_profile(profile: Profile, max_length: int) -> None:
    """Refuse a profile that no plan of the score graph can have.

    Raises:
        InputError: it does not ascend from 1, or exceeds `max_length` tokens or 32 bits.
    """
    _check_ascends(profile, ("batch", "length"))
    if profile.max.length > max_length:
        raise InputError(
            f"profile {profile}: {profile.max.length} tokens, but the guard truncates texts to "
            f"{max_length}"
        )


def check_stream_profiles(profiles: Sequence[Profile], context_length: int) -> None:
    """Refuse profiles that no plan of the streaming graph can have, or that hold no stream.

    Raises:
        InputError: one does not ascend from 1, or exceeds the backbone's context or 32 bits; or
            all have a shorter past than `LEAST_STREAM_TOKENS`.
    """
    for profile in profiles:
        _check_ascends(profile, ("batch", "chunk", "past"))
        if max(profile.max.length, profile.max.past) > context_length:
            raise InputError(
                f"profile {profile}: more tokens than the {context_length} that the backbone can "
                "hold"
            )
    longest = max(profiles, key=lambda profile: profile.max.past)
    if longest.max.past < LEAST_STREAM_TOKENS:
        raise InputError(
            f"profile {longest}: a past of {longest.max.past} tokens at most, but a stream holds "
            f"{LEAST_STREAM_TOKENS} at least, so that it can slide; give a profile whose last "
            f"number is {LEAST_STREAM_TOKENS} or more, such as 1x1x1:1x1x512:8x256x2048"
        )


def _check_ascends(profile: Profile, names: Sequence[str]) -> None:
    extents = [extent[: len(names)] for extent in (profile.min, profile.opt, profile.max)]
    ascends = all(1 <= low <= opt <= high < _SIZES for low, opt, high in zip(*extents, strict=True))
    surplus = any(any(extent[len(names) :]) for extent in (profile.min, profile.opt, profile.max))
    if not ascends or surplus:
        raise InputError(
            f"profile {profile}: {', '.join(names)} must ascend from 1, below {_SIZES}"
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


def choose_profile(
    profiles: Sequence[Profile], buckets: Sequence[int], batch: int, length: int
) -> Choice:
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
    position = bisect_left(buckets, length)
    bucket = buckets[position] if position < len(buckets) else length
    return Choice(index, _within(Extent(_power_of_two(batch), bucket), profiles[index]))


def choose_stream_profile(profiles: Sequence[Profile], wanted: Extent) -> Choice:
    """Choose as `choose_profile` does, for streams.

    Chunks are raised to powers of two from 1 on, pasts to the default buckets.

    Raises:
        BackendError: no profile takes them.
    """
    fitting = [
        (profile.max, index)
        for index, profile in enumerate(profiles)
        if all(size <= limit for size, limit in zip(wanted, profile.max, strict=True))
    ]
    if not fitting:
        limits = ", ".join(str(profile.max) for profile in profiles)
        raise BackendError(
            f"{wanted.batch} streams by {wanted.length} tokens after {wanted.past} are more than "
            f"the plan takes ({limits}); compile it again with siren build --stream-profile "
            f"1x1x1:{wanted}:{wanted}"
        )
    largest, index = min(fitting)
    buckets = default_buckets(largest.past)
    past = buckets[bisect_left(buckets, wanted.past)]
    rounded = Extent(_power_of_two(wanted.batch), _power_of_two(wanted.length), past)
    return Choice(index, _within(rounded, profiles[index]))


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _within(extent: Extent, profile: Profile) -> Extent:
    limits = zip(extent, profile.min, profile.max, strict=True)
    return Extent(*(min(max(size, low), high) for size, low, high in limits))
