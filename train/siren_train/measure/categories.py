"""Categories against labelled rows: each label by itself, and more than two classes one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard
from siren_runtime.errors import InputError
from siren_runtime.scoring.result import ScoreResult
from siren_train.data.labels import known, label_values
from siren_train.data.rows import Row

from .metrics import BinaryMetrics, binary_metrics
from .table import markdown_table


@dataclass(frozen=True, eq=False)
class CategoryScores:
    """What a head's categories got of rows whose own are known.

    Attributes:
        head: its name.
        names: of the categories.
        rows: int64 [known], the places of those rows among all that were scored.
        probabilities: float64 [known, categories].
        truth: bool [known, categories].
        verdicts: bool [known, categories]; of classes the likeliest, of labels each that holds.
        exclusive: whether one of them holds of each row.
    """

    head: str
    names: tuple[str, ...]
    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    truth: NDArray[np.bool_]
    verdicts: NDArray[np.bool_]
    exclusive: bool


class CategoryEvaluation(msgspec.Struct, frozen=True):
    """The metrics of each category of a head, and their plain means.

    Attributes:
        macro_f1: the mean of the F1 of the categories that rows have.
        mean_average_precision: likewise.
        thresholds: of labels, by name; none of classes, of which the likeliest holds.
    """

    head: str
    rows: int
    exclusive: bool
    macro_f1: float
    mean_average_precision: float
    thresholds: dict[str, float]
    by_category: dict[str, BinaryMetrics]


def heads_of_categories(guard: Guard, measured: str) -> list[str]:
    """The names of a guard's heads whose categories rows can tell: labels, or the classes of the
    head that is measured, which are those of the label column.
    """
    own = zip(guard.heads, guard.manifests[0].heads.values(), strict=True)
    return [name for name, spec in own if spec.categories and (spec.has_labels or name == measured)]


def category_scores(
    guard: Guard, head: str, rows: Sequence[Row], results: Sequence[ScoreResult]
) -> CategoryScores | None:
    """Put what a head gave beside what rows say of themselves.

    Labels are those that a row's category names; rows that are harmful and name none are left out.
    Classes are its label. None where no row names a label.

    Raises:
        InputError: a row is of a class that the head does not have.
    """
    spec = [*guard.manifests[0].heads.values()][guard.heads.index(head)]
    names = spec.categories
    found = np.array([[*r.heads[head].categories.values()] for r in results], np.float64)
    if spec.activation == "softmax":
        labels = np.array([row.label for row in rows], np.int64)
        if labels.max(initial=0) >= len(names):
            raise InputError(f"a row is of class {labels.max()}; the head {head!r} has {names}")
        likeliest = found.argmax(axis=1)
        every = np.eye(len(names), dtype=np.bool_)
        places = np.arange(len(rows))
        return CategoryScores(head, names, places, found, every[labels], every[likeliest], True)
    values = np.array([label_values(row, names) for row in rows], np.int64).reshape(-1, len(names))
    usable = known(values)
    if not (values[usable] == 1).any():
        return None
    verdicts = np.array([[n in r.heads[head].flagged for n in names] for r in results])
    places = np.flatnonzero(usable).astype(np.int64)
    return CategoryScores(
        head, names, places, found[usable], values[usable] == 1, verdicts[usable], False
    )


def measure_categories(
    scores: CategoryScores, thresholds: Mapping[str, float]
) -> CategoryEvaluation:
    """Measure each category against the rest.

    Args:
        thresholds: of labels by name.
    """
    metrics = {
        name: binary_metrics(
            scores.truth[:, place],
            scores.probabilities[:, place],
            thresholds.get(name, 0.5),
            scores.verdicts[:, place],
        )
        for place, name in enumerate(scores.names)
    }
    present = [m for m in metrics.values() if m.harmful]
    return CategoryEvaluation(
        head=scores.head,
        rows=len(scores.rows),
        exclusive=scores.exclusive,
        macro_f1=float(np.mean([m.f1 for m in present])),
        mean_average_precision=float(
            np.mean([m.average_precision for m in present if m.average_precision is not None])
        ),
        thresholds=dict(thresholds),
        by_category=metrics,
    )


def categories_markdown(evaluation: CategoryEvaluation) -> list[str]:
    """The lines of a table of categories, as Markdown."""
    what = "class" if evaluation.exclusive else "label"
    head = (
        what, "threshold", "rows of it", "F1", "precision", "recall", "AUROC",
        "average precision", "calibration error",
    )  # fmt: skip
    rows = []
    for name, m in evaluation.by_category.items():
        threshold = evaluation.thresholds.get(name)
        values = (
            m.f1, m.precision, m.recall, m.auroc, m.average_precision, m.expected_calibration_error,
        )  # fmt: skip
        rows.append(
            (
                name,
                "likeliest" if threshold is None else f"{threshold:.3g}",
                str(m.harmful),
                *("-" if value is None else f"{value:.3f}" for value in values),
            )
        )
    return [
        "",
        f"Head {evaluation.head}, each {what} against the rest, on {evaluation.rows} rows; mean F1 "
        f"{evaluation.macro_f1:.3f}, mean average precision "
        f"{evaluation.mean_average_precision:.3f}:",
        "",
        *markdown_table(head, rows),
    ]
