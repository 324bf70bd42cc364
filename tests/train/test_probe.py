"""The L1 probe is the optimum of its objective, and finds the channels that matter."""

import numpy as np
import pytest
import torch

from siren_runtime.errors import InputError
from siren_train.fit.probe import fit_probe
from siren_train.store.features import FeatureSet, Standardizer, balanced_weights


def make_features(rows: int, seed: int, classes: int = 2) -> FeatureSet:
    """Two layers of 12 channels; in the second, channels 3 and 7 tell the classes apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    pooled = rng.normal(2.0, 3.0, (rows, 2, 12)).astype(np.float32)
    pooled[:, 1, 3] += 6 * (labels == 1)
    pooled[:, 1, 7] += 6 * (labels == classes - 1)
    names = tuple(f"class {index}" for index in range(classes))
    datasets = rng.integers(0, 2, rows)
    names_of_sets = ("first", "second")
    return FeatureSet(pooled, labels, datasets, datasets, np.arange(rows), names_of_sets, names)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_channels_that_matter_get_the_weight(classes: int) -> None:
    probe = fit_probe(make_features(600, 0, classes), make_features(300, 1, classes), 1)
    assert set(np.argsort(-probe.weights)[:2]) == {3, 7}
    assert probe.validation.mean > 0.75
    assert set(probe.validation.by_dataset) == {"first", "second"}


def test_a_layer_without_signal_scores_like_chance() -> None:
    probe = fit_probe(make_features(600, 0), make_features(300, 1), 0)
    assert probe.validation.mean < 0.6


def test_a_strength_of_one_silences_every_channel() -> None:
    probe = fit_probe(make_features(300, 0), make_features(100, 1), 1, strengths=[1.0])
    assert probe.weights.max() < 1e-4


def test_the_probe_is_the_optimum_of_its_objective() -> None:
    train = make_features(400, 0)
    probe = fit_probe(train, make_features(100, 1), 1, strengths=[0.1], balance=0.0)
    standardized = Standardizer.fit(train.pooled[:, 1]).apply(train.pooled[:, 1])
    inputs, labels = torch.from_numpy(standardized).double(), torch.from_numpy(train.labels)
    weights = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    targets = labels.double()
    silent = (inputs.T @ (targets - targets.mean()) / len(labels)).abs().max()
    optimizer = torch.optim.Adam([weights, bias])
    for rate in (1e-2, 1e-3, 1e-4):
        optimizer.param_groups[0]["lr"] = rate
        for _ in range(800):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                inputs @ weights + bias, targets
            )
            optimizer.zero_grad()
            (loss + 0.1 * silent * weights.abs().sum()).backward()
            optimizer.step()
    np.testing.assert_allclose(probe.weights, weights.detach().abs().numpy(), atol=0.01)


def rows_of(labels: list[int], datasets: list[int], collections: list[int]) -> FeatureSet:
    columns = (np.array(column, np.int64) for column in (labels, datasets, collections))
    count = len(labels)
    pooled = np.zeros((count, 1, 1), np.float32)
    return FeatureSet(pooled, *columns, np.arange(count), ("first", "second"), ("safe", "harmful"))


def test_balance_gives_small_data_sets_their_say() -> None:
    datasets = [0] * 90 + [1] * 10
    features = rows_of([0, 1] * 50, datasets, datasets)
    assert balanced_weights(features, 0.0).tolist() == [1.0] * 100
    full = balanced_weights(features, 1.0)
    assert full[:90].sum() == pytest.approx(full[90:].sum(), rel=1e-5)
    assert full.mean() == pytest.approx(1.0, rel=1e-5)
    part = balanced_weights(features, 1.0, np.arange(80, 100))
    assert part == pytest.approx(np.ones(20))


def test_the_collections_of_a_data_set_share_the_weight_of_its_classes() -> None:
    labels = [0] * 60 + [1] * 40
    collections = [0] * 50 + [1] * 10 + [2] * 40
    features = rows_of(labels, [0] * 100, collections)
    assert balanced_weights(features, 0.0).tolist() == [1.0] * 100
    full = balanced_weights(features, 1.0)
    assert full[:60].sum() == pytest.approx(60, rel=1e-5)  # the classes keep theirs
    assert full[:50].sum() == pytest.approx(full[50:60].sum(), rel=1e-5)


@pytest.mark.parametrize("split", [0, 1], ids=["train", "validation"])
def test_a_feature_that_is_not_finite_is_refused(split: int) -> None:
    both = make_features(60, 0), make_features(60, 1)
    both[split].pooled[5, 1, 2] = np.nan
    with pytest.raises(InputError, match="layer 1: a feature is not finite"):
        fit_probe(*both, 1)
