"""What is left of a guard's judgement when rows stand among plain text of other rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.scoring.verdict import HeadJudge
from siren_train.data.chunks import chunks_told
from siren_train.data.dilution import PLACES, Dilution
from siren_train.data.rows import Row

from .metrics import auroc
from .stated import told
from .table import markdown_table

FALSE_ALARMS = 0.05  # at which recalls of different ways are compared
WAYS = ("beginning", "windows", "spans")


@dataclass(frozen=True, eq=False)
class WaysRisks:
    """Risks of the same rows by each way of reading, float64 [rows], as `ScoreResult` has them.

    Attributes:
        beginning: of what fits in the guard's max_length, as llm-siren reads.
        windows: of the highest window.
        spans: of the highest window or span.
        thresholds: from which of these risks on each row is harmful.
    """

    beginning: NDArray[np.float64]
    windows: NDArray[np.float64]
    spans: NDArray[np.float64]
    thresholds: NDArray[np.float64]


class DilutedMetrics(msgspec.Struct, frozen=True):
    """How one way of reading fares on the rows of a data set among so much plain text.

    Attributes:
        place: where the rows stand: "alone", "behind" the plain text or in its "middle".
        tokens: of plain text.
        way: one of `WAYS`, as `WaysRisks` has them.
        recall, false_alarms: shares of harmful and of safe rows that are flagged at the threshold.
        recall_at_false_alarms: of harmful rows, at the threshold that flags `FALSE_ALARMS` of these
            safe rows.
        auroc: None where all rows have one label, as the other two where they count no rows.
    """

    dataset: str
    place: str
    tokens: int
    way: str
    rows: int
    auroc: float | None
    recall: float | None
    false_alarms: float | None
    recall_at_false_alarms: float | None


class DilutedEvaluation(msgspec.Struct, frozen=True):
    """What was found for every data set, place, length and way.

    Attributes:
        threshold, response_threshold, each_label: as `Stated` has them.
    """

    bundles: list[str]
    sources: list[str]
    split: str
    threshold: float
    span_thresholds: dict[int, float]
    results: list[DilutedMetrics]
    response_threshold: float | None = None
    each_label: bool = False


def measure_diluted(
    guard: Guard,
    rows: Sequence[Row],
    lengths: Sequence[int],
    threshold: float | None = None,
    progress: Progress = silent,
    *,
    among: Sequence[Row] | None = None,
) -> list[DilutedMetrics]:
    """Score rows alone, and behind and in the middle of `lengths` tokens of plain text.

    Args:
        guard: whose exits decide on none, so that scores rank.
        threshold: of its primary head; None is its own.
        among: the rows whose safe ones the plain text is taken of; None is `rows`.

    Raises:
        InputError: a data set has too few safe rows to take plain text from.
        SirenError: as `Guard.score_batch`.
    """
    tokenizer = guard.scorers[0].tokenizer
    ways = [Dilution(tokenizer, length, place) for length in lengths for place in PLACES]
    risks = _scored(guard, rows, threshold, "rows alone", progress)
    results = _metrics(rows, risks, "alone", 0)
    for way in ways:
        placed = way.of(rows, among)
        risks = _scored(guard, placed, threshold, f"{way.place} {way.tokens} tokens", progress)
        results += _metrics(placed, risks, way.place, way.tokens)
    return results


def _scored(
    guard: Guard, rows: Sequence[Row], threshold: float | None, stage: str, progress: Progress
) -> WaysRisks:
    found: list[tuple[float, float, float, float]] = []
    for chunk in chunks_told(rows, 64, [row.length() for row in rows], stage, progress):
        texts = [row.given for row in chunk]
        results = guard.score_batch(texts, threshold, long_text="windows", spans=True)
        long = [i for i, result in enumerate(results) if result.span is not None]
        beginnings = guard.score_batch(
            [texts[i] for i in long], threshold, long_text="truncate", spans=False
        )
        cut = dict(zip(long, (one.risk for one in beginnings), strict=True))
        for i, (row, result) in enumerate(zip(chunk, results, strict=True)):
            whole = _risk_of_windows(guard.judge.primary.of_text(row.has_response), result)
            found.append((cut.get(i, whole), whole, result.risk, result.threshold))
    return WaysRisks(*np.array(found, np.float64).T)


def _risk_of_windows(head: HeadJudge, result: ScoreResult) -> float:
    """The risk of a text, were there no spans.

    Args:
        head: the primary one, by which the text was decided on.
    """
    labels = result.heads[next(iter(result.heads))].categories
    scores = [(labels[name], own) for name, own in head.labels.items()]
    scores = scores or [(result.score, head.threshold)]
    return max(head.risk_of(score, own, result.threshold) for score, own in scores)


def _metrics(
    rows: Sequence[Row], risks: WaysRisks, place: str, tokens: int
) -> list[DilutedMetrics]:
    """What each way finds."""
    harmful = np.array([row.label == 1 for row in rows])
    datasets = np.array([row.dataset for row in rows])
    results = []
    for dataset in dict.fromkeys(datasets.tolist()):
        of_set = datasets == dataset
        labels = harmful[of_set]
        for way in WAYS:
            values = getattr(risks, way)[of_set]
            flagged = values >= risks.thresholds[of_set]
            results.append(
                DilutedMetrics(
                    dataset=dataset,
                    place=place,
                    tokens=tokens,
                    way=way,
                    rows=int(of_set.sum()),
                    auroc=auroc(labels, values),
                    recall=_share(flagged[labels]),
                    false_alarms=_share(flagged[~labels]),
                    recall_at_false_alarms=_recall_at(labels, values),
                )
            )
    return results


def _recall_at(harmful: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    """The recall at the lowest threshold that flags at most `FALSE_ALARMS` of the safe rows."""
    safe = np.sort(scores[~harmful])[::-1]
    if not len(safe):
        return None
    return _share(scores[harmful] > safe[int(FALSE_ALARMS * len(safe))])


def _share(flagged: NDArray[np.bool_]) -> float | None:
    return float(flagged.mean()) if len(flagged) else None


def diluted_markdown(evaluation: DilutedEvaluation) -> str:
    """Return the table, as Markdown."""
    spans = ", ".join(f"{size}: {value:.4g}" for size, value in evaluation.span_thresholds.items())
    of_responses, each_label = evaluation.response_threshold, evaluation.each_label
    head = (
        "data set", "place", "plain tokens", "read by", "rows", "AUROC", "recall", "false alarms",
        f"recall at {FALSE_ALARMS:.0%} false alarms",
    )  # fmt: skip
    rows = []
    for m in evaluation.results:
        shares = (m.auroc, m.recall, m.false_alarms, m.recall_at_false_alarms)
        shown = ["-" if share is None else f"{share:.3f}" for share in shares]
        rows.append([m.dataset, m.place, str(m.tokens), m.way, str(m.rows), *shown])
    lines = [
        f"# Rows of the {evaluation.split} split among plain text",
        "",
        f"Guard: {' + '.join(evaluation.bundles)}; "
        f"{told(evaluation.threshold, of_responses, each_label=each_label)}; "
        f"thresholds of spans by their tokens: {spans or 'none, so the same'}.",
        "",
        *markdown_table(head, rows),
    ]
    return "\n".join(lines) + "\n"
