"""What is left of a guard's judgement when the letters or spaces of a text are disguised."""

import random
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from siren_runtime import Guard
from siren_runtime.bundle.progress import Progress
from siren_runtime.text.rules import clean
from siren_train.data.disguises import KINDS, disguised
from siren_train.data.rows import Row

from .metrics import BinaryMetrics, binary_metrics

AS_WRITTEN = "as written"
_CHUNK_ROWS = 64


class DisguisedEvaluation(msgspec.Struct, frozen=True):
    """What was found for every data set and disguise.

    Attributes:
        results: metrics by data set, and then by disguise, the texts as they were written first.
    """

    bundles: list[str]
    sources: list[str]
    split: str
    threshold: float
    results: dict[str, dict[str, BinaryMetrics]]
    max_rows: int | None = None


def disguised_row(row: Row, kind: str, seed: int = 0) -> Row:
    """The row with its text in a disguise, which depends on the seed, the kind and the text."""
    draw = random.Random(f"{seed}/{kind}/{row.dataset}/{row.text}")
    return replace(row, text=clean(disguised(row.text, kind, draw)), id=None, is_copy=True)


def measure_disguised(
    guard: Guard,
    rows: Sequence[Row],
    threshold: float,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, dict[str, BinaryMetrics]]:
    """Score rows as they are and in each disguise; none has a response.

    Raises:
        SirenError: as `Guard.score_batch`.
    """
    found: dict[str, dict[str, BinaryMetrics]] = {row.dataset: {} for row in rows}
    harmful = np.array([row.label == 1 for row in rows])
    datasets = np.array([row.dataset for row in rows])
    for kind in (AS_WRITTEN, *KINDS):
        texts = [row.text if kind == AS_WRITTEN else disguised_row(row, kind).text for row in rows]
        scores: list[float] = []
        progress(kind, 0, len(texts))
        for start in range(0, len(texts), _CHUNK_ROWS):
            results = guard.score_batch(texts[start : start + _CHUNK_ROWS])
            scores += [result.score for result in results]
            progress(kind, len(scores), len(texts))
        for dataset, by_kind in found.items():
            of_set = datasets == dataset
            by_kind[kind] = binary_metrics(harmful[of_set], np.array(scores)[of_set], threshold)
    return found


def disguised_markdown(evaluation: DisguisedEvaluation) -> str:
    """Return macro-F1 by data set, and the means of all metrics, as Markdown."""
    results = evaluation.results
    kinds = (AS_WRITTEN, *KINDS)
    sampled = f", at most {evaluation.max_rows} of a data set" if evaluation.max_rows else ""
    lines = [
        f"# Rows of the {evaluation.split} split in disguise",
        "",
        f"Guard: {' + '.join(evaluation.bundles)}; threshold {evaluation.threshold:g}{sampled}. "
        "Macro-F1 of each data set, and means over those with rows of both labels.",
        "",
        f"| data set | rows | {' | '.join(kinds)} |",
        "| --- " * (len(kinds) + 2) + "|",
    ]
    for dataset, by_kind in results.items():
        cells = [f"{by_kind[kind].macro_f1:.3f}" for kind in kinds]
        name = dataset.replace("|", r"\|")
        lines.append(f"| {name} | {by_kind[AS_WRITTEN].rows} | {' | '.join(cells)} |")
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
        cells = [f"{mean:.3f}" for mean in means] or ["-"] * len(kinds)
        lines.append(f"| mean {title} | | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
