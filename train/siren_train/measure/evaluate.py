"""Score labelled text with a guard, and measure the scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard
from siren_runtime.backends.verdicts import HeadScore, SpanScore
from siren_runtime.bundle.progress import Progress, by_length, silent
from siren_runtime.errors import InputError
from siren_runtime.scoring.result import ScoreResult
from siren_train.data.benchmarks import PAPER
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns, Row, read_all, read_rows
from siren_train.data.sources import Source

from .categories import (
    CategoryEvaluation,
    CategoryScores,
    categories_markdown,
    category_scores,
    heads_of_categories,
    measure_categories,
)
from .exit_evaluation import ExitEvaluation, exits_markdown
from .metrics import BinaryMetrics, binary_metrics
from .stated import told
from .table import markdown_table

T = TypeVar("T")


def chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield `size` rows at a time, at the end what is left."""
    rest = iter(rows)
    while chunk := list(islice(rest, size)):
        yield chunk


def _none() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scored rows, and what is known of each.

    Attributes:
        scores: float64 [rows], of harm.
        harmful: bool [rows], by the labels.
        datasets, categories: str [rows], names.
        heads: of each head that has categories.
        tokens: int64 [rows], of the whole text.
        exits: int64 [rows], the blocks that were run where an exit decided, else 0.
        has_response: bool [rows], which texts have one.
        spans: float64 [rows, sizes], the highest span of each size that was asked for; 0 where a
            row has none. Without columns where none was.
        risks: float64 [rows], by which a guard ranks rows, as `ScoreResult.risk`.
        flagged: bool [rows], which a guard calls harmful.
    """

    scores: NDArray[np.float64]
    harmful: NDArray[np.bool_]
    datasets: NDArray[np.str_]
    categories: NDArray[np.str_]
    heads: tuple[CategoryScores, ...] = ()
    tokens: NDArray[np.int64] = field(default_factory=_none)
    exits: NDArray[np.int64] = field(default_factory=_none)
    has_response: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    spans: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    risks: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    flagged: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def of(self, rows: NDArray[np.bool_]) -> "Scores":
        """The rows of a mask, without what heads of categories got."""
        known = {name: v for name, v in vars(self).items() if name != "heads" and len(v)}
        return replace(self, heads=(), **{name: values[rows] for name, values in known.items()})

    def ranked_as(self, whole: "Scores") -> "Scores":
        """The same verdicts, with the scores and risks of a guard whose exits do not decide: those
        of several depths do not rank.
        """
        return replace(self, scores=whole.scores, risks=whole.risks)


NO_ROWS = Scores(np.zeros(0), np.zeros(0, np.bool_), np.zeros(0, np.str_), np.zeros(0, np.str_))


class Evaluation(msgspec.Struct, frozen=True):
    """What an evaluation found.

    Attributes:
        bundles: what was scored with; several are an ensemble.
        sources: names of the sources of the rows.
        mean_macro_f1: over data sets, each counting the same.
        by_category: of each data set, if asked for.
        heads: of each head that has labels, or more than two classes.
        exits: of a guard whose exits decide.
        max_rows: of each data set, of each class alike; None where all rows were scored.
        paper: of public benchmarks: macro-F1 in percent that the SIREN paper reports, by guard and
            then by data set.
        notes: by data set, what a reader of its figures must know.
        threshold, response_threshold, each_label: as `Stated` has them.
    """

    bundles: list[str]
    sources: list[str]
    split: str
    threshold: float
    mean_macro_f1: float
    by_dataset: dict[str, BinaryMetrics]
    by_category: dict[str, dict[str, BinaryMetrics]] = msgspec.field(default_factory=dict)
    heads: list[CategoryEvaluation] = msgspec.field(default_factory=list)
    exits: ExitEvaluation | None = None
    max_rows: int | None = None
    paper: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    notes: dict[str, str] = msgspec.field(default_factory=dict)
    response_threshold: float | None = None
    each_label: bool = False


def score_rows(
    guard: Guard,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    progress: Progress = silent,
    *,
    head: str | None = None,
    threshold: float | None = None,
    max_rows: int | None = None,
    spans: Sequence[int] = (),
) -> Scores:
    """Score the rows of a split. All data is read and checked before the first is scored.

    Args:
        head: whose scores are taken; None is the primary one.
        threshold: of the primary head; None is the guard's own.
        max_rows: of each data set, score at most so many, of each class alike; None scores all.
        spans: sizes of spans that are scored too.

    Raises:
        InputError: the data is unusable, or has no row of that split.
    """
    rows: list[Row] = []
    results: list[ScoreResult] = []
    most = most_tokens(guard)
    lengths: dict[str, list[int]] = {}
    for row in read_all(sources, columns):
        lengths.setdefault(row.split, []).append(row.length(most))
    if split not in lengths:
        raise no_rows(split, sources, lengths)
    selected: Iterator[Row] = (
        row for source in sources for row in read_rows(source, columns) if row.split == split
    )
    if max_rows is not None:
        kept = sampled(selected, max_rows)
        lengths[split], selected = [row.length(most) for row in kept], iter(kept)
    tell = by_length(progress, "scoring", lengths[split])
    tell(0)
    for chunk in chunks(selected, 512):
        results += _scored(guard, chunk, threshold, spans)
        rows += [replace(row, text="", turns=(), trajectory=None) for row in chunk]
        tell(len(rows))
    name = head or guard.heads[0]
    scores, risks, flagged = judged([result.heads[name] for result in results])
    return Scores(
        scores,
        np.array([row.label == 1 for row in rows]),
        np.array([row.dataset for row in rows]),
        np.array([row.category for row in rows]),
        tuple(
            of_head
            for head_name in heads_of_categories(guard)
            if (of_head := category_scores(guard, head_name, rows, results)) is not None
        ),
        np.array([result.tokens for result in results]),
        np.array([result.exit or 0 for result in results]),
        np.array([row.has_response for row in rows]),
        highest_spans([result.heads[name].spans for result in results], spans),
        risks,
        flagged,
    )


def judged(
    found: Sequence[ScoreResult] | Sequence[HeadScore],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """The score, the risk and the verdict of each: float64, float64 and bool [rows]."""
    return (
        np.array([one.score for one in found], np.float64),
        np.array([one.risk for one in found], np.float64),
        np.array([bool(one.is_harmful) for one in found]),
    )


def most_tokens(guard: Guard) -> int | None:
    """How many tokens a guard reads of a text at most; None where it reads all."""
    manifest = guard.manifests[0]
    cuts = manifest.is_trajectory or guard.judge.limits.long_text == "truncate"
    return manifest.text.max_length if cuts else None


def highest_spans(
    found: Sequence[Sequence[SpanScore]], sizes: Sequence[int]
) -> NDArray[np.float64]:
    """The highest span of each size, of each row: float64 [rows, sizes], 0 where it has none."""
    scores = np.zeros((len(found), len(sizes)))
    for row, spans in enumerate(found):
        for span in spans:
            scores[row, sizes.index(span.tokens)] = span.score
    return scores


def _scored(
    guard: Guard, rows: Sequence[Row], threshold: float | None, spans: Sequence[int]
) -> list[ScoreResult]:
    """What the guard makes of rows, which are of what it scores: texts, or trajectories."""
    if guard.manifests[0].is_trajectory:
        return guard.score_trajectories([row.trajectory for row in rows], threshold)
    return guard.score_batch([row.given for row in rows], threshold, spans=spans or False)


def rows_of_split(
    sources: Sequence[Source], columns: Columns, split: str, max_rows: int | None = None
) -> list[Row]:
    """The rows of a split, after all data is read and checked.

    Args:
        max_rows: of each data set, at most so many, of each class alike; None is all.

    Raises:
        InputError: the data is unusable, or has no row of that split.
    """
    everything = list(read_all(sources, columns))
    rows = sampled((row for row in everything if row.split == split), max_rows)
    if not rows:
        raise no_rows(split, sources, {row.split for row in everything})
    return rows


def no_rows(split: str, sources: Sequence[Source], found: Iterable[str]) -> InputError:
    """The error for data that has rows of other splits only, which are `found`."""
    return InputError(
        f"no rows of the {split!r} split in {', '.join(s.location for s in sources)}; "
        f"found {', '.join(sorted(found))}"
    )


def measure(
    scores: Scores,
    *,
    bundles: Sequence[str],
    sources: Sequence[str],
    split: str,
    threshold: float,
    response_threshold: float | None = None,
    each_label: bool = False,
    by_category: bool = False,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
) -> Evaluation:
    """Measure each data set and, if `by_category`, each of its categories; and each head's own.

    Args:
        scores: with risks and verdicts.
        bundles, sources, split: for the report; `scores` are of these.
        threshold, response_threshold, each_label: likewise, by which rows were flagged.
        thresholds: of labels, by the name of a head.
    """
    by_dataset, categories = {}, {}

    def measured(rows: NDArray[np.bool_]) -> BinaryMetrics:
        verdicts, risks = scores.flagged[rows], scores.risks[rows]
        return binary_metrics(
            scores.harmful[rows], scores.scores[rows], verdicts=verdicts, risks=risks
        )

    for name in dict.fromkeys(scores.datasets.tolist()):
        rows = scores.datasets == name
        by_dataset[name] = measured(rows)
        if by_category:
            categories[name] = {
                category: measured(rows & (scores.categories == category))
                for category in sorted(set(scores.categories[rows].tolist()))
            }
    return Evaluation(
        bundles=list(bundles),
        sources=list(sources),
        split=split,
        threshold=threshold,
        response_threshold=response_threshold,
        each_label=each_label,
        mean_macro_f1=float(np.mean([m.macro_f1 for m in by_dataset.values()])),
        by_dataset=by_dataset,
        by_category=categories,
        heads=[
            measure_categories(head, (thresholds or {}).get(head.head, {})) for head in scores.heads
        ],
    )


def evaluation_markdown(evaluation: Evaluation) -> str:
    """Return the tables of an evaluation, as Markdown."""
    lines = [
        f"# Evaluation on the {evaluation.split} split",
        "",
        f"Guard: {' + '.join(evaluation.bundles)}; {thresholds_of(evaluation)}; "
        f"**mean macro-F1 {evaluation.mean_macro_f1:.4f}**.",
        *_sampled(evaluation.max_rows),
        "",
        *_table("data set", evaluation.by_dataset),
    ]
    for name, categories in evaluation.by_category.items():
        lines += ["", f"{name} by category:", "", *_table("category", categories)]
    if evaluation.exits is not None:
        by_dataset = {name: m.macro_f1 for name, m in evaluation.by_dataset.items()}
        lines += exits_markdown(evaluation.exits, evaluation.mean_macro_f1, by_dataset)
    if evaluation.paper:
        lines += ["", *_beside_the_paper(evaluation)]
    lines += [f"\n{name}: {note}." for name, note in evaluation.notes.items()]
    for head in evaluation.heads:
        lines += categories_markdown(head)
    return "\n".join(lines) + "\n"


def thresholds_of(evaluation: Evaluation) -> str:
    """The words for its thresholds."""
    of_responses = evaluation.response_threshold
    return told(evaluation.threshold, of_responses, each_label=evaluation.each_label)


def _sampled(max_rows: int | None) -> list[str]:
    if max_rows is None:
        return []
    return ["", f"At most {max_rows} rows of each data set were scored, of each class alike."]


def _beside_the_paper(evaluation: Evaluation) -> list[str]:
    ours = {name: 100 * metrics.macro_f1 for name, metrics in evaluation.by_dataset.items()}
    compared = next(iter(evaluation.paper.values()))
    rows = []
    for guard, figures in {"**this one**": ours, **evaluation.paper}.items():
        values = [figures[name] for name in compared]
        rows.append([guard, *(f"{value:.1f}" for value in (*values, float(np.mean(values))))])
    return [
        f"Macro-F1 in percent beside that of {PAPER}:",
        "",
        *markdown_table(("guard", *compared, "mean"), rows),
    ]


def _table(title: str, metrics: dict[str, BinaryMetrics]) -> list[str]:
    head = (
        title, "rows", "harmful", "macro-F1", "accuracy", "precision", "recall", "AUROC",
        "average precision", "calibration error",
    )  # fmt: skip
    rows = []
    for name, m in metrics.items():
        values = (
            m.macro_f1, m.accuracy, m.precision, m.recall, m.auroc, m.average_precision,
            m.expected_calibration_error,
        )  # fmt: skip
        shown = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append([name or "(none)", str(m.rows), str(m.harmful), *shown])
    return markdown_table(head, rows)
