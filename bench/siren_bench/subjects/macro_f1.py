"""Quality of verdicts on labelled rows."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from .corpus import Row


def macro_f1_by_dataset(
    rows: Sequence[Row], scores: Sequence[float], thresholds: float | np.ndarray
) -> dict[str, float]:
    """Return the macro-F1 of each data set, over its labelled rows; sets without any are left out.

    Args:
        rows: In any order.
        thresholds: One for all rows, or one for each, [rows].
    """
    found = {}
    judged = zip(rows, (np.asarray(scores) >= thresholds).tolist(), strict=True)
    pairs = sorted(judged, key=lambda pair: pair[0].dataset)
    for dataset, group in groupby(pairs, key=lambda pair: pair[0].dataset):
        labelled = [(row.label, verdict) for row, verdict in group if row.label is not None]
        if labelled:
            labels, verdicts = map(np.asarray, zip(*labelled, strict=True))
            found[dataset] = macro_f1(labels == 1, verdicts)
    return found


def macro_f1(labels: np.ndarray, verdicts: np.ndarray) -> float:
    """Return the mean of the F1 of both classes; a class that nobody names counts 0.

    Args:
        labels, verdicts: bool [rows], true for harmful.
    """
    scores = []
    for harmful in (True, False):
        hits = np.sum((labels == harmful) & (verdicts == harmful))
        named = np.sum(labels == harmful) + np.sum(verdicts == harmful)
        scores.append(2 * hits / named if named else 0.0)
    return float(np.mean(scores))
