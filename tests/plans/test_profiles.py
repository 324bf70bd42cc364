"""Profiles say what a plan takes, and the choice among them never loses a text."""

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren_runtime.backends.shapes import (
    Choice,
    Extent,
    Profile,
    check_profile,
    choose_profile,
    choose_stream_profile,
    default_buckets,
    default_profiles,
    max_batch,
    parse_profile,
)
from siren_runtime.errors import BackendError, InputError


def test_the_defaults_take_one_text_and_batches_up_to_the_guards_limit():
    one, many = default_profiles(512)
    assert (one.min, one.max) == (Extent(1, 1), Extent(1, 512))
    assert (many.min, many.max) == (Extent(1, 1), Extent(32, 512))


def test_a_profile_is_read_as_it_is_shown():
    text = "1x1:8x128:32x512"
    assert str(parse_profile(text)) == text


@pytest.mark.parametrize("text", ["", "1x1", "1x1:2x2", "1:2:3", "1x1:1x2:axb", "1x1:1x2:1x3:1x4"])
def test_what_is_not_a_profile_is_refused_with_an_example(text):
    with pytest.raises(InputError, match="1x1:8x128:32x512"):
        parse_profile(text)


@pytest.mark.parametrize(
    "text", ["0x1:1x1:1x1", "1x9:1x8:1x9", "2x1:1x1:4x1", "1x1:1x1:1x1x8", "1x1:1x1:2147483648x1"]
)
def test_a_profile_must_ascend(text):
    with pytest.raises(InputError, match="ascend"):
        check_profile(parse_profile(text), 512)


def test_a_profile_beyond_the_guards_truncation_is_refused():
    with pytest.raises(InputError, match="513 tokens, but the guard truncates texts to 512"):
        check_profile(parse_profile("1x1:1x1:1x513"), 512)


def test_one_text_runs_in_the_profile_of_one_text():
    profiles = default_profiles(512)
    assert choose_profile(profiles, default_buckets(512), 1, 100) == Choice(0, Extent(1, 128))
    assert choose_profile(profiles, default_buckets(512), 5, 100) == Choice(1, Extent(8, 128))


def test_the_longest_text_is_not_padded_beyond_the_profile():
    assert choose_profile(default_profiles(500), default_buckets(500), 32, 499).extent == Extent(
        32, 500
    )


def test_a_profile_too_small_says_what_to_compile():
    profiles = [Profile(Extent(1, 1), Extent(2, 8), Extent(4, 16))]
    with pytest.raises(BackendError, match=r"17 tokens.*16 at most.*siren build --profile"):
        max_batch(profiles, 17)
    with pytest.raises(BackendError, match=r"5 texts by 8 tokens.*4x16.*siren build --profile"):
        choose_profile(profiles, [16], 5, 8)


extents = st.builds(Extent, st.integers(1, 40), st.integers(1, 600))


def ascending(limit):
    return st.lists(st.integers(1, limit), min_size=3, max_size=3).map(sorted)


profiles = st.builds(
    lambda batches, lengths: Profile(*map(Extent, batches, lengths)), ascending(40), ascending(600)
)


@given(st.lists(profiles, min_size=1, max_size=4), extents)
def test_a_choice_holds_the_batch_and_lies_in_its_profile(shapes, wanted):
    buckets = default_buckets(max(shape.max.length for shape in shapes))
    try:
        index, extent = choose_profile(shapes, buckets, wanted.batch, wanted.length)
    except BackendError:
        assert all(wanted.batch > s.max.batch or wanted.length > s.max.length for s in shapes)
        return
    assert extent.batch >= wanted.batch
    assert extent.length >= wanted.length
    for low, found, high in zip(shapes[index].min, extent, shapes[index].max, strict=True):
        assert low <= found <= high


@given(st.integers(1, 4096))
def test_buckets_ascend_to_the_longest(longest):
    buckets = default_buckets(longest)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == longest


stream_profiles = st.builds(
    lambda *sizes: Profile(*map(Extent, *sizes)), ascending(12), ascending(300), ascending(3000)
)
stream_extents = st.builds(Extent, st.integers(1, 12), st.integers(1, 300), st.integers(1, 3000))


@given(st.lists(stream_profiles, min_size=1, max_size=3), stream_extents)
def test_a_streams_choice_holds_it_and_lies_in_its_profile(shapes, wanted):
    try:
        index, extent = choose_stream_profile(shapes, wanted)
    except BackendError:
        assert all(any(map(operator.gt, wanted, shape.max)) for shape in shapes)
        return
    assert all(map(operator.le, wanted, extent))
    assert all(map(operator.le, shapes[index].min, extent))
    assert all(map(operator.le, extent, shapes[index].max))
