"""Quality of verdicts on labelled rows."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from .corpus import Row


def macro_f1_by_dataset(rows: Sequence[Row], verdicts: Sequence[bool]) -> dict[str, float]:
    """Return the macro-F1 of each data set, over its labelled rows; sets without any are left out.

    A set of one class counts by the share of its rows that is right, as in `siren evaluate`: one
    false alarm would take half of its macro-F1, however many rows there are.

    Args:
        rows: In any order.
        verdicts: Of each row, true for harmful.
    """
    found = {}
    judged = zip(rows, verdicts, strict=True)
    pairs = sorted(judged, key=lambda pair: pair[0].dataset)
    for dataset, group in groupby(pairs, key=lambda pair: pair[0].dataset):
        labelled = [(row.label == 1, one) for row, one in group if row.label is not None]
        if labelled:
            harmful, flagged = map(np.asarray, zip(*labelled, strict=True))
            one_class = harmful.all() or not harmful.any()
            right = float((harmful == flagged).mean())
            found[dataset] = right if one_class else macro_f1(harmful, flagged)
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
