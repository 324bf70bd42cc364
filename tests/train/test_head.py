"""Heads learn, are the same for the same seed, and fold into one MLP exactly."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch

from siren_export.heads.mlp import Dense
from siren_train.fit.head import (
    HeadConfig,
    fold_members,
    fold_standardizer,
    head_logits,
    train_head,
)
from siren_train.store.features import Standardizer

CONFIG = HeadConfig(hidden=(16, 8), epochs=8, batch_size=32, learning_rate=0.01, members=3)


def make_data(classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 400)
    features = rng.normal(5.0, 10.0, (400, 20)).astype(np.float32)
    features[np.arange(400), 15 + labels] += 40
    features[:, 9] = 7.0  # a channel that never changes
    return features, labels


def fit(seed: int = 0, workers: int = 1, classes: int = 2) -> tuple[Dense, ...]:
    features, labels = make_data(classes)
    ones = np.ones(len(labels), np.float32)
    gains = np.linspace(0.1, 1.0, 20, dtype=np.float32)
    return train_head(features, labels, ones, gains, classes, CONFIG, seed=seed, workers=workers)


def random_mlp(rng: np.random.Generator, *dims: int) -> tuple[Dense, ...]:
    return tuple(
        Dense(rng.normal(size=(out, inner)).astype(np.float32), rng.normal(size=out))
        for inner, out in pairwise(dims)
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_learns_from_raw_features(classes: int) -> None:
    features, labels = make_data(classes)
    verdicts = head_logits(fit(classes=classes), features).argmax(axis=1)
    assert (verdicts == labels).mean() > 0.9


def test_each_member_is_told_of_as_it_is_trained() -> None:
    features, labels = make_data()
    ones, gains = np.ones(len(labels), np.float32), np.ones(20, np.float32)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    train_head(features, labels, ones, gains, 2, CONFIG, seed=0, progress=tell)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_seed_gives_one_head_on_any_number_of_threads() -> None:
    torch.manual_seed(1)
    first = fit()
    torch.manual_seed(2)  # the global generator plays no part
    second, other = fit(workers=3), fit(seed=1)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
        np.testing.assert_array_equal(a.bias, b.bias)
    assert not np.array_equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("dims", [(7, 3), (7, 5, 3), (7, 5, 4, 2), (7, 5, 4, 6, 2)])
def test_folded_members_give_the_mean_of_their_logits(dims: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    members = [random_mlp(rng, *dims) for _ in range(3)]
    if len(dims) == 2:  # a linear head has no hidden layer to stack
        members = members[:1]
    inputs = rng.normal(size=(11, 7)).astype(np.float32)
    expected = np.mean([head_logits(member, inputs) for member in members], axis=0)
    np.testing.assert_allclose(
        head_logits(fold_members(members), inputs), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("columns", [1, 2, 64, 65, 129, 300])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_columns_are_measured_a_few_at_once_to_the_same_numbers(
    columns: int, dtype: type[np.floating]
) -> None:
    values = np.random.default_rng(columns).normal(5.0, 10.0, (500, columns)).astype(dtype)
    found = Standardizer.fit(values)
    mean, scale = (of(axis=0, dtype=np.float64) for of in (values.mean, values.std))
    np.testing.assert_array_equal(found.mean, mean.astype(np.float32))
    np.testing.assert_array_equal(found.scale, scale.astype(np.float32))


def test_standardizing_takes_no_more_memory_than_its_result() -> None:
    values = np.random.default_rng(0).normal(5.0, 10.0, (4000, 512)).astype(np.float32)
    tracemalloc.start()
    try:
        Standardizer.fit(values).apply(values)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 1.2 * values.nbytes


def test_folded_standardization_gives_the_same_logits() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(5.0, 10.0, (50, 7)).astype(np.float32)
    features[:, 2] = 3.0
    standardizer = Standardizer.fit(features)
    head = random_mlp(rng, 7, 5, 2)
    np.testing.assert_allclose(
        head_logits(fold_standardizer(head, standardizer), features),
        head_logits(head, standardizer.apply(features)),
        rtol=1e-3,
        atol=1e-4,
    )
