"""Metrics agree with their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren_train.measure.metrics import (
    binary_metrics,
    calibration_error,
    macro_f1,
    macro_f1_by_dataset,
    mean_macro_f1,
    precision_recall,
)

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=60)


def test_macro_f1_is_the_mean_over_classes() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 2])
    assert macro_f1(labels, predictions) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_a_class_that_does_not_occur_does_not_count() -> None:
    assert macro_f1(np.array([0, 3]), np.array([0, 3])) == 1.0


def test_every_data_set_counts_the_same() -> None:
    labels = np.array([0, 1] * 50 + [0, 1])
    predictions = labels.copy()
    predictions[-2:] = [1, 0]
    datasets = np.array([0] * 100 + [1] * 2)
    result = macro_f1_by_dataset(labels, predictions, datasets, ["large", "small", "none"])
    assert result.by_dataset == {"large": 1.0, "small": 0.0}
    assert result.mean == 0.5
    names = np.array(["large", "small"])[datasets]
    assert mean_macro_f1(labels == 1, predictions == 1, names) == 0.5


@given(scored)
def test_auroc_is_the_chance_of_the_right_order(rows: list[tuple[bool, int]]) -> None:
    harmful = np.array([row[0] for row in rows])
    scores = np.array([row[1] for row in rows]) / 20
    found = binary_metrics(harmful, scores, 0.5).auroc
    if harmful.all() or not harmful.any():
        assert found is None
        return
    pairs = scores[harmful][:, None] - scores[~harmful][None, :]
    assert found == pytest.approx(np.mean((np.sign(pairs) + 1) / 2))


@given(scored)
def test_precision_and_recall_hold_at_every_threshold(rows: list[tuple[bool, int]]) -> None:
    harmful = np.array([row[0] for row in rows])
    scores = np.array([row[1] for row in rows]) / 20
    if not harmful.any():
        return
    for precision, recall, threshold in zip(*precision_recall(harmful, scores), strict=True):
        metrics = binary_metrics(harmful, scores, threshold)
        assert metrics.precision == pytest.approx(precision)
        assert metrics.recall == pytest.approx(recall)


def test_average_precision_of_a_perfect_ranking_is_one() -> None:
    metrics = binary_metrics(np.array([False, True, True]), np.array([0.1, 0.2, 0.3]), 0.5)
    assert (metrics.average_precision, metrics.auroc, metrics.recall) == (1.0, 1.0, 0.0)


def test_what_is_undefined_is_none() -> None:
    metrics = binary_metrics(np.array([False, False]), np.array([0.1, 0.2]), 0.5)
    assert (metrics.precision, metrics.recall, metrics.auroc) == (None, None, None)
    assert metrics.accuracy == 1.0


def test_calibration_error_is_the_distance_from_honest_scores() -> None:
    harmful = np.array([True, False, False, False])
    assert calibration_error(harmful, np.full(4, 0.25)) == 0.0
    assert calibration_error(harmful, np.full(4, 0.95)) == pytest.approx(0.7)
    assert calibration_error(np.array([True, False]), np.array([1.0, 0.0])) == 0.0
