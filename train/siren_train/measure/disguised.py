"""What is left of a guard's judgement when the letters or spaces of a text are disguised."""

import random
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from siren_runtime import Guard
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.text.reading import LongText
from siren_runtime.text.rules import clean
from siren_train.data.chunks import chunks_told
from siren_train.data.disguises import KINDS, disguised
from siren_train.data.rows import Row

from .evaluate import judged, most_tokens
from .metrics import BinaryMetrics, binary_metrics
from .stated import read_told, told
from .table import markdown_table

AS_WRITTEN = "as written"


class DisguisedEvaluation(msgspec.Struct, frozen=True):
    """What was found for every data set and disguise.

    Attributes:
        threshold, each_label: as `Stated` has them.
        results: metrics by data set, and then by disguise, the texts as they were written first.
        long_text, spans: as `StatedReading` has them.
    """

    bundles: list[str]
    sources: list[str]
    split: str
    threshold: float
    results: dict[str, dict[str, BinaryMetrics]]
    max_rows: int | None = None
    each_label: bool = False
    long_text: LongText | None = None
    spans: list[int] = msgspec.field(default_factory=list)


def disguised_row(row: Row, kind: str) -> Row:
    """The row with its text in a disguise, which depends on the kind and the text."""
    draw = random.Random(f"0/{kind}/{row.dataset}/{row.text}")
    return replace(row, text=clean(disguised(row.text, kind, draw)), id=None, is_copy=True)


def measure_disguised(
    guard: Guard,
    rows: Sequence[Row],
    threshold: float | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, BinaryMetrics]]:
    """Score rows as they are and in each disguise; none has a response.

    Args:
        guard: whose exits decide on none, so that scores rank.
        threshold: of its primary head; None is its own.

    Raises:
        SirenError: as `Guard.score_batch`.
    """
    found: dict[str, dict[str, BinaryMetrics]] = {row.dataset: {} for row in rows}
    harmful = np.array([row.label == 1 for row in rows])
    datasets = np.array([row.dataset for row in rows])
    most = most_tokens(guard)
    for kind in (AS_WRITTEN, *KINDS):
        given = [row if kind == AS_WRITTEN else disguised_row(row, kind) for row in rows]
        results: list[ScoreResult] = []
        lengths = [row.length(most) for row in given]
        for chunk in chunks_told(given, 64, lengths, kind, progress):
            results += guard.score_batch([row.text for row in chunk], threshold)
        scores, risks, flagged = judged(results)
        for dataset, by_kind in found.items():
            of_set = datasets == dataset
            by_kind[kind] = binary_metrics(
                harmful[of_set], scores[of_set], verdicts=flagged[of_set], risks=risks[of_set]
            )
    return found


def disguised_markdown(evaluation: DisguisedEvaluation) -> str:
    """Return macro-F1 by data set, and the means of all metrics, as Markdown."""
    results = evaluation.results
    kinds = (AS_WRITTEN, *KINDS)
    sampled = f", at most {evaluation.max_rows} of a data set" if evaluation.max_rows else ""
    rows = []
    for dataset, by_kind in results.items():
        found = [by_kind[kind].macro_f1_of_both for kind in kinds]
        scores = ["-" if macro_f1 is None else f"{macro_f1:.3f}" for macro_f1 in found]
        rows.append([dataset, str(by_kind[AS_WRITTEN].rows), *scores])
    mixed = [m for m in results.values() if 0 < m[AS_WRITTEN].harmful < m[AS_WRITTEN].rows]
    for title, name in (
        ("macro-F1", "macro_f1"),
        ("AUROC", "auroc"),
        ("recall", "recall"),
        ("false alarms", "false_alarms"),
    ):
        means = (
            [np.mean([getattr(m[kind], name) for m in mixed]) for kind in kinds] if mixed else []
        )
        shown = [f"{mean:.3f}" for mean in means] or ["-"] * len(kinds)
        rows.append([f"mean {title}", "", *shown])
    lines = [
        f"# Rows of the {evaluation.split} split in disguise",
        "",
        f"Guard: {' + '.join(evaluation.bundles)}; "
        f"{told(evaluation.threshold, each_label=evaluation.each_label)}{sampled}"
        f"{read_told(evaluation.long_text, evaluation.spans)}. "
        "Macro-F1 of each data set, and means over those with rows of both labels.",
        "",
        *markdown_table(("data set", "rows", *kinds), rows),
    ]
    return "\n".join(lines) + "\n"
