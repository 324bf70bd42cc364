"""Score labelled text with a guard, and measure the scores."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard
from siren_runtime.backends.verdicts import HeadScore, SpanScore
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.text.reading import LongText
from siren_train.data.chunks import chunks_told
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns, Row, read_all, read_rows
from siren_train.data.sources import Source

from .categories import (
    CategoryEvaluation,
    CategoryScores,
    category_scores,
    heads_of_categories,
    measure_categories,
)
from .exit_evaluation import ExitEvaluation
from .metrics import BinaryMetrics, binary_metrics
from .order_evaluation import OrdersEvaluation


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
        spans: float64 [rows, sizes], the highest span of each size that was looked for; 0 where a
            row has none. Without columns where none was.
        risks: float64 [rows], by which a guard ranks rows, as `ScoreResult.risk`.
        flagged: bool [rows], which a guard calls harmful.
        orders: float64 [rows, orders], by each order of a polynomial.
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
    orders: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))

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
        mean_macro_f1: over data sets, each counting the same, as `BinaryMetrics.counted`.
        by_category: of each data set, if asked for.
        by_group: likewise, where several categories of a data set are of one group, `group_of`.
        heads: of each head that has labels, or more than two classes.
        exits: of a guard whose exits decide.
        orders: of a guard whose first head is a polynomial, where that is measured.
        max_rows: of each data set, of each class alike; None where all rows were scored.
        paper: of public benchmarks: macro-F1 in percent that the SIREN paper reports, by guard and
            then by data set.
        head: whose scores and verdicts these are; None is the first.
        notes: by data set, what a reader of its figures must know.
        threshold, response_threshold, each_label: as `Stated` has them.
        long_text, spans: as `StatedReading` has them; files from before these were kept have none.
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
    orders: OrdersEvaluation | None = None
    max_rows: int | None = None
    paper: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    notes: dict[str, str] = msgspec.field(default_factory=dict)
    response_threshold: float | None = None
    each_label: bool = False
    head: str | None = None
    long_text: LongText | None = None
    spans: list[int] = msgspec.field(default_factory=list)
    by_group: dict[str, dict[str, BinaryMetrics]] = msgspec.field(default_factory=dict)


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
    spans: Sequence[int] | None = (),
) -> Scores:
    """Score the rows of a split. All data is read and checked before the first is scored.

    Args:
        head: whose scores are taken, and whose classes are those of the label column; None is the
            primary one.
        threshold: of the primary head; None is the guard's own.
        max_rows: of each data set, score at most so many, of each class alike; None scores all.
        spans: sizes of spans that are asked for, by which the primary head then decides; None are
            those that the guard looks for by itself, where its heads decide by them.

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
    for chunk in chunks_told(selected, 512, lengths[split], "scoring", progress):
        results += _scored(guard, chunk, threshold, spans)
        rows += [replace(row, text="", turns=(), trajectory=None) for row in chunk]
    name = head or guard.heads[0]
    sizes = guard.judge.limits.spans or () if spans is None else spans
    scores, risks, flagged = judged([result.heads[name] for result in results])
    return Scores(
        scores,
        np.array([row.label == 1 for row in rows]),
        np.array([row.dataset for row in rows]),
        np.array([row.category for row in rows]),
        tuple(
            of_head
            for head_name in heads_of_categories(guard, name)
            if (of_head := category_scores(guard, head_name, rows, results)) is not None
        ),
        np.array([result.tokens for result in results]),
        np.array([result.exit or 0 for result in results]),
        np.array([row.has_response for row in rows]),
        highest_spans([result.heads[name].spans for result in results], sizes),
        risks,
        flagged,
        np.array([result.heads[name].orders for result in results], np.float64),
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


def tokens_read(scores: Scores, guard: Guard) -> NDArray[np.int64] | None:
    """How many tokens a guard of one bundle read of each row, int64 [rows]; None where some are
    read in windows, of which each is read by itself.
    """
    at_once = guard.manifest.text.max_length
    if most_tokens(guard) is None and (scores.tokens > at_once).any():
        return None
    return np.minimum(scores.tokens, at_once)


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
    guard: Guard, rows: Sequence[Row], threshold: float | None, spans: Sequence[int] | None
) -> list[ScoreResult]:
    """What the guard makes of rows, which are of what it scores: texts, or trajectories."""
    if guard.manifests[0].is_trajectory:
        return guard.score_trajectories([row.trajectory for row in rows], threshold)
    asked = None if spans is None else spans or False
    return guard.score_batch([row.given for row in rows], threshold, spans=asked)


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


def group_of(category: str) -> str:
    """What stands before a category's first colon, such as the language of `fr: question`."""
    return category.partition(":")[0]


def shared_groups(categories: Iterable[str]) -> list[str]:
    """The groups that several of these categories are of."""
    counts = Counter(map(group_of, categories))
    return [group for group, several in counts.items() if several > 1]


def measure(
    scores: Scores,
    *,
    bundles: Sequence[str],
    sources: Sequence[str],
    split: str,
    threshold: float,
    response_threshold: float | None = None,
    each_label: bool = False,
    head: str | None = None,
    by_category: bool = False,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
) -> Evaluation:
    """Measure each data set and, if `by_category`, each of its categories, and each group of them;
    and each head's own.

    Args:
        scores: with risks and verdicts.
        bundles, sources, split: for the report; `scores` are of these.
        threshold, response_threshold, each_label: likewise, by which rows were flagged.
        head: likewise, whose scores these are; None is the first.
        thresholds: of labels, by the name of a head.
    """
    by_dataset, categories, groups = {}, {}, {}
    of_groups = np.array([group_of(category) for category in scores.categories.tolist()])

    def measured(rows: NDArray[np.bool_]) -> BinaryMetrics:
        verdicts, risks = scores.flagged[rows], scores.risks[rows]
        return binary_metrics(
            scores.harmful[rows], scores.scores[rows], verdicts=verdicts, risks=risks
        )

    for name in dict.fromkeys(scores.datasets.tolist()):
        rows = scores.datasets == name
        by_dataset[name] = measured(rows)
        if by_category:
            found = sorted(set(scores.categories[rows].tolist()))
            categories[name] = {one: measured(rows & (scores.categories == one)) for one in found}
            if shared := shared_groups(found):
                groups[name] = {one: measured(rows & (of_groups == one)) for one in shared}
    return Evaluation(
        bundles=list(bundles),
        sources=list(sources),
        split=split,
        threshold=threshold,
        response_threshold=response_threshold,
        each_label=each_label,
        head=head,
        mean_macro_f1=float(np.mean([m.counted for m in by_dataset.values()])),
        by_dataset=by_dataset,
        by_category=categories,
        by_group=groups,
        heads=[
            measure_categories(one, (thresholds or {}).get(one.head, {})) for one in scores.heads
        ],
    )
