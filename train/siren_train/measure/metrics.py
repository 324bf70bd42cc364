"""Classification metrics.

The macro-F1 of each data set, averaged over data sets, is the metric of the SIREN paper (arXiv
2604.18519): a data set counts the same whatever its size, and so does a class. A data set whose
rows are all of one class counts by the share of them that is right: one false alarm would take
half of its macro-F1, however many rows there are. Labels, which few data sets name, are measured
over all rows together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from siren_train.store.features import IntArray


@dataclass(frozen=True)
class MacroF1:
    """What each data set counts by name, and the `mean` of all rows."""

    mean: float
    by_dataset: dict[str, float]


def macro_f1(labels: IntArray, predictions: IntArray) -> float:
    """Return the mean F1 over the classes that occur in `labels` or `predictions`, of one shape.

    Both are [rows] of classes, or [rows, labels] of 0 and 1; 1 where no label occurs in either.
    """
    if labels.ndim == 2:
        occurs = (labels | predictions).any(axis=0)
        if not occurs.any():
            return 1.0
        labels, predictions = labels[:, occurs], predictions[:, occurs]
        if occurs.sum() == 1:  # scikit-learn takes one column for classes
            return float(f1_score(labels[:, 0], predictions[:, 0], zero_division=0.0))
    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def dataset_macro_f1(labels: IntArray, predictions: IntArray) -> float:
    """Return what a data set counts: the macro-F1 of its rows, arrays as `macro_f1` takes them; of
    classes of which it has one alone, the share that is right.
    """
    if labels.ndim == 1 and (labels == labels[0]).all():
        return float((labels == predictions).mean())
    return macro_f1(labels, predictions)


def macro_f1_by_dataset(
    labels: IntArray,
    predictions: IntArray,
    datasets: IntArray,
    names: Sequence[str],
) -> MacroF1:
    """Return what each data set that has rows counts, as `dataset_macro_f1`, and the plain mean; of
    labels the mean is that of all rows as one set.

    Args:
        labels, predictions: int64 [rows], class indices, or [rows, labels], 0 or 1.
        datasets: int64 [rows], indices into `names`.
    """
    by_dataset = {
        names[index]: dataset_macro_f1(labels[datasets == index], predictions[datasets == index])
        for index in np.unique(datasets)
    }
    if labels.ndim == 2:
        return MacroF1(macro_f1(labels, predictions), by_dataset)
    return MacroF1(float(np.mean(list(by_dataset.values()))), by_dataset)


def mean_macro_f1(
    harmful: NDArray[np.bool_], verdicts: NDArray[np.bool_], datasets: NDArray[np.str_]
) -> float:
    """Return the mean over data sets of what each counts by [rows] verdicts, as `dataset_macro_f1`.

    Args:
        harmful: bool [rows], by the labels.
        datasets: str [rows], names.
    """
    labels, found = harmful.astype(np.int64), verdicts.astype(np.int64)
    of_datasets = [datasets == name for name in np.unique(datasets)]
    return float(np.mean([dataset_macro_f1(labels[rows], found[rows]) for rows in of_datasets]))


def harm_f1(harmful: NDArray[np.bool_], verdicts: NDArray[np.bool_]) -> float:
    """Return the F1 of harm, or of a label, alone: bool [rows] both; 0 where nothing is hit."""
    hits = int((verdicts & harmful).sum())
    return 2 * hits / int(verdicts.sum() + harmful.sum()) if hits else 0.0


@dataclass(frozen=True)
class BinaryMetrics:
    """How scores of harm fare against labels, at a threshold.

    Attributes:
        rows, harmful: how many there are, and how many of them are labelled harmful.
        precision: None where nothing is flagged.
        recall: None where nothing is harmful.
        f1: of harm alone; 0 where nothing is flagged, or nothing that is harmful.
        auroc, average_precision: of the risks alone, whatever the threshold; None where all rows
            have one label.
        expected_calibration_error: the mean distance between score and share of harm over ten bins
            of equal width, weighted by their rows.
    """

    rows: int
    harmful: int
    accuracy: float
    precision: float | None
    recall: float | None
    macro_f1: float
    f1: float
    auroc: float | None
    average_precision: float | None
    expected_calibration_error: float

    @property
    def false_alarms(self) -> float | None:
        """The share of safe rows that are flagged; None where there are none."""
        safe = self.rows - self.harmful
        if not safe:
            return None
        passed = self.accuracy * self.rows - (self.recall or 0.0) * self.harmful
        return max(1.0 - passed / safe, 0.0)

    @property
    def macro_f1_of_both(self) -> float | None:
        """The macro-F1 of rows of both classes; None of those of one, of which it says nothing."""
        return self.macro_f1 if 0 < self.harmful < self.rows else None

    @property
    def counted(self) -> float:
        """What the rows count as a data set in a mean: macro-F1, or as `dataset_macro_f1` says."""
        of_both = self.macro_f1_of_both
        return self.accuracy if of_both is None else of_both


CALIBRATION_BINS = 10


def binary_metrics(
    harmful: NDArray[np.bool_],
    scores: NDArray[np.float64],
    threshold: float = 0.5,
    verdicts: NDArray[np.bool_] | None = None,
    risks: NDArray[np.float64] | None = None,
) -> BinaryMetrics:
    """Measure [rows] `scores` of harm against whether each row is `harmful`.

    Args:
        threshold: from which score on a row is flagged, where there are no verdicts.
        verdicts: bool [rows], where the threshold alone does not make them.
        risks: float64 [rows], by which rows are ranked; None are the scores.
    """
    verdicts = scores >= threshold if verdicts is None else verdicts
    risks = scores if risks is None else risks
    hits = int((verdicts & harmful).sum())
    flagged, positives = int(verdicts.sum()), int(harmful.sum())
    mixed = 0 < positives < len(harmful)
    return BinaryMetrics(
        rows=len(harmful),
        harmful=positives,
        accuracy=float((verdicts == harmful).mean()),
        precision=hits / flagged if flagged else None,
        recall=hits / positives if positives else None,
        macro_f1=macro_f1(harmful.astype(np.int64), verdicts.astype(np.int64)),
        f1=harm_f1(harmful, verdicts),
        auroc=auroc(harmful, risks),
        average_precision=float(average_precision_score(harmful, risks)) if mixed else None,
        expected_calibration_error=calibration_error(harmful, scores),
    )


def auroc(harmful: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve of [rows] scores; None where all rows have one label."""
    return float(roc_auc_score(harmful, scores)) if 0 < harmful.sum() < len(harmful) else None


def precision_recall(
    harmful: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return precision, recall and threshold at each distinct score, thresholds falling."""
    precision, recall, thresholds = precision_recall_curve(harmful, scores)
    return precision[-2::-1], recall[-2::-1], thresholds[::-1]


def calibration_bins(
    harmful: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], IntArray]:
    """Return the mean score, share of harm, and rows of each bin that has rows."""
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = counts > 0
    mean = np.bincount(bins, scores, CALIBRATION_BINS)[filled] / counts[filled]
    share = np.bincount(bins, harmful, CALIBRATION_BINS)[filled] / counts[filled]
    return mean, share, counts[filled].astype(np.int64)


def calibration_error(harmful: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Return the expected calibration error, 0 to 1."""
    mean, share, counts = calibration_bins(harmful, scores)
    return float((np.abs(mean - share) * counts).sum() / counts.sum())
