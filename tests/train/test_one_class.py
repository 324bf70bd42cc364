"""One false alarm weighs what one row does, also where a data set has no row of a class."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.progress import silent
from siren_train.commands.calibration_shown import print_decision
from siren_train.fit import label_decisions
from siren_train.fit.head import HeadConfig
from siren_train.fit.search import Choice
from siren_train.measure.calibrate_labels import find_label_thresholds
from siren_train.measure.categories import CategoryScores
from siren_train.measure.evaluate import Scores
from siren_train.measure.exit_bounds import ExitScores, choose_bounds
from siren_train.measure.metrics import (
    binary_metrics,
    dataset_macro_f1,
    macro_f1_by_dataset,
    mean_macro_f1,
)
from siren_train.measure.threshold_rules import find_threshold

NAMED, OTHER = "named", "other"


def scored(alarms: int) -> Scores:
    """A data set of two classes, and 500 safe rows of another, of which so many score 0.6."""
    groups = [  # how many, harmful, score, data set
        (10, True, 0.8, NAMED),
        (10, True, 0.55, NAMED),
        (20, False, 0.2, NAMED),
        (500 - alarms, False, 0.2, OTHER),
        (alarms, False, 0.6, OTHER),
    ]
    counts, harmful, scores, datasets = zip(*groups, strict=True)
    names = np.repeat(np.array(datasets), counts)
    return Scores(np.repeat(scores, counts), np.repeat(harmful, counts), names, names)


def of_label(alarms: int) -> Scores:
    """The same of the one label of a head."""
    rows = scored(alarms)
    kinds = CategoryScores(
        head="kinds",
        names=("illicit",),
        rows=np.arange(len(rows.scores)),
        probabilities=rows.scores[:, None],
        truth=rows.harmful[:, None],
        verdicts=rows.scores[:, None] >= 0.5,
        exclusive=False,
    )
    return Scores(rows.scores, rows.harmful, rows.datasets, rows.categories, (kinds,))


def test_a_labels_threshold_is_not_moved_by_a_false_alarm_where_no_row_is_of_it() -> None:
    none, one = (find_label_thresholds(of_label(n), "kinds", "best")["illicit"] for n in (0, 1))
    assert 0.2 < none < 0.55
    assert one == none


def test_training_chooses_a_labels_threshold_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scored(1)
    logits = np.log(rows.scores / (1 - rows.scores))[:, None].astype(np.float32)
    setup: Any = SimpleNamespace(
        features=SimpleNamespace(
            names=(NAMED, OTHER),
            datasets=(rows.datasets == OTHER).astype(np.int64),
            labels=rows.harmful[:, None].astype(np.int64),
            classes=("illicit",),
        )
    )
    places = np.arange(len(logits))
    monkeypatch.setattr(label_decisions, "all_held_out_logits", lambda *_: (places, logits))
    choice = Choice(0.8, HeadConfig())
    (decision,) = label_decisions.decide_labels(setup, choice, 1, silent)
    found = 1 / (1 + np.exp(-logits[:, 0] / decision.temperature)) >= decision.threshold
    assert (found == (rows.scores > 0.5)).all()


def test_the_best_threshold_is_not_moved_by_a_false_alarm_of_a_harmless_data_set() -> None:
    none, one = (find_threshold(scored(n), "best") for n in (0, 1))
    assert 0.2 < none < 0.55
    assert one == none


def test_a_data_set_of_one_class_counts_by_the_share_that_is_right() -> None:
    rows = scored(1)
    labels, found = rows.harmful.astype(np.int64), (rows.scores >= 0.5).astype(np.int64)
    other = rows.datasets == OTHER
    assert dataset_macro_f1(labels[other], found[other]) == 0.998
    assert mean_macro_f1(rows.harmful, found == 1, rows.datasets) == pytest.approx(0.999)
    result = macro_f1_by_dataset(labels, found, other.astype(np.int64), (NAMED, OTHER))
    assert result.by_dataset == {NAMED: 1.0, OTHER: 0.998}
    assert result.mean == pytest.approx(0.999)
    metrics = binary_metrics(rows.harmful[other], rows.scores[other])
    assert metrics.counted == 0.998
    assert metrics.macro_f1 < 0.5  # as everyone has it
    both = binary_metrics(rows.harmful, rows.scores)
    assert both.counted == both.macro_f1


def test_a_threshold_that_is_shown_has_no_macro_f1_of_one_class(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = scored(1)
    print_decision(Decision(threshold=0.5), rows.of(rows.datasets == OTHER), "validation")
    print_decision(Decision(threshold=0.5), rows, "validation")
    assert capsys.readouterr().out.splitlines() == [
        "threshold: from 0.5000, precision 0.000, recall -, macro-F1 - on 500 validation rows",
        "threshold: from 0.5000, precision 0.952, recall 1.000, macro-F1 0.987 on 540 "
        "validation rows",
    ]


def test_labels_are_measured_over_all_rows_together() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 0], [0, 1], [0, 1], [0, 0]])
    found = labels.copy()
    found[2, 1] = 1  # where no row is of the second label
    result = macro_f1_by_dataset(labels, found, np.array([0, 0, 0, 1, 1, 1]), (NAMED, OTHER))
    assert result.mean == pytest.approx((1 + 4 / 5) / 2)


def test_a_lost_row_of_a_harmless_data_set_does_not_keep_an_exit_closed() -> None:
    groups = [  # how many, harmful, the exit's score, data set
        (100, True, 0.9, NAMED),
        (100, False, 0.1, NAMED),
        (399, False, 0.1, OTHER),
        (1, False, 0.95, OTHER),
    ]
    counts, harmful, exits, datasets = zip(*groups, strict=True)
    labels, rows = np.repeat(harmful, counts), sum(counts)
    scores = ExitScores(
        np.where(labels, 0.9, 0.1),
        np.repeat(exits, counts)[:, None],
        labels,
        np.repeat(np.array(datasets), counts),
        np.ones(rows, np.int64),
    )
    assert choose_bounds(scores, (2,), 6, [0.5], 0.02).bounds == [(0.1, 0.9)]
