"""Micro-batches: every text once, within the budget, little padding."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from siren_runtime.backends.batching import micro_batches, right_pad

LENGTHS = st.lists(st.integers(1, 600), max_size=60)


@given(LENGTHS, st.integers(1, 4096))
def test_each_text_is_in_one_batch_and_the_batches_are_sorted_by_length(
    lengths: list[int], budget: int
) -> None:
    order = [index for batch in micro_batches(lengths, budget) for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths)


@given(LENGTHS, st.integers(1, 4096))
def test_a_padded_batch_stays_within_the_budget_unless_one_text_exceeds_it(
    lengths: list[int], budget: int
) -> None:
    for batch in micro_batches(lengths, budget):
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 4096))
def test_no_batch_could_have_taken_the_next_text(lengths: list[int], budget: int) -> None:
    batches = [*micro_batches(lengths, budget)]
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * lengths[following[0]] > budget


@given(st.lists(st.lists(st.integers(0, 2**31), min_size=1, max_size=9), min_size=1, max_size=9))
def test_padding_goes_right_and_is_masked(sequences: list[list[int]]) -> None:
    input_ids, attention_mask = right_pad(sequences)
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert input_ids.shape == (len(sequences), max(map(len, sequences)))
    for ids, mask, sequence in zip(input_ids, attention_mask, sequences, strict=True):
        assert mask.tolist() == [1] * len(sequence) + [0] * (len(ids) - len(sequence))
        assert ids[: len(sequence)].tolist() == sequence
