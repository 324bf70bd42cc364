"""What exits save and cost: a guard's time and macro-F1 on labelled texts with and without them."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from siren_bench.records.record import markdown_table
from siren_bench.records.samples import paired_ratio, spread, timed_in_turns
from siren_bench.subjects.corpus import Row
from siren_bench.subjects.macro_f1 import macro_f1_by_dataset
from siren_runtime import Guard, ScoreResult, StreamResult
from siren_runtime.bundle.progress import Progress
from siren_runtime.scoring.call import Text

Result = TypeVar("Result", ScoreResult, StreamResult)


def measure_cascade(
    exits: Guard,
    whole: Guard,
    rows: Sequence[Row],
    sizes: Sequence[int],
    rounds: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Score all rows in batches of each size, `rounds` times by each guard in turns.

    Macro-F1 is of each data set, over its labelled rows.

    Args:
        exits, whole: of one bundle, opened with exits and without, that read the beginning of a
            text which is longer than they read at once.
    """
    texts = [row.given for row in rows]
    blocks, at_once = whole.manifest.backbone.blocks_kept, whole.manifest.text.max_length
    results = []
    for number, size in enumerate(sizes):
        ours, theirs, compared = exits_in_turns(
            partial(_scored, exits, texts, size),
            partial(_scored, whole, texts, size),
            blocks,
            rounds,
            part_of(progress, number, len(sizes)),
        )
        read = np.array([min(result.tokens, at_once) for result in ours])
        depths = np.array([result.exit or blocks for result in ours])
        measured = {
            "cost": float((read * depths).sum() / (read.sum() * blocks)),
            "macro_f1": _macro_f1(rows, ours),
            "whole_macro_f1": _macro_f1(rows, theirs),
        }
        results.append({"batch": size, "rows": len(texts), **measured, **compared})
    return results


def exits_in_turns(
    exits: Callable[[], list[Result]],
    whole: Callable[[], list[Result]],
    blocks: int,
    rounds: int,
    progress: Progress,
) -> tuple[list[Result], list[Result], dict[str, Any]]:
    """Time two runs over the same texts, with exits and without, `rounds` times in turns.

    Args:
        blocks: of the whole guard.

    Returns:
        The results of both, and of their comparison the verdicts by depth, how many changed, the
        milliseconds of each round and the median ratio of paired rounds.
    """
    ours, theirs = exits(), whole()  # to warm up, too
    with_exits, without = timed_in_turns(
        [exits, whole], rounds, lambda done: progress("timing", done, rounds), warm_ups=0
    )
    compared = {
        "blocks": blocks,
        "exits": dict(sorted(Counter(result.exit or blocks for result in ours).items())),
        "changed_verdicts": sum(
            a.is_harmful != b.is_harmful for a, b in zip(ours, theirs, strict=True)
        ),
        "exits_ms": with_exits,
        "whole_ms": without,
        "ratio": paired_ratio(with_exits, without),
    }
    return ours, theirs, compared


def part_of(progress: Progress, number: int, parts: int) -> Progress:
    """The progress of one part of several that are alike."""

    def tell(stage: str, done: int, total: int, *, share: float | None = None) -> None:
        of_all = None if share is None else (number + share) / parts
        progress(stage, number * total + done, parts * total, share=of_all)

    return tell


def paired_times(result: dict[str, Any], count: int) -> list[str]:
    """Of a result the median milliseconds over `count`, without exits and with them, and their
    ratio with its spread.
    """
    ratios = [a / b for a, b in zip(result["exits_ms"], result["whole_ms"], strict=True)]
    return [
        f"{statistics.median(result['whole_ms']) / count:.2f}",
        f"{statistics.median(result['exits_ms']) / count:.2f}",
        spread(ratios),
    ]


def by_depth(result: dict[str, Any]) -> str:
    """Of a result how many verdicts were given behind how many blocks."""
    return ", ".join(f"{depth}: {count}" for depth, count in result["exits"].items())


def cascade_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the medians as Markdown."""
    header = [
        "batch", "whole guard, ms a text", "with exits, ms a text", "time", "cost in blocks",
        "rows by depth", "changed verdicts", "mean macro-F1", "whole guard's",
    ]  # fmt: skip
    rows = [
        [
            str(result["batch"]),
            *paired_times(result, result["rows"]),
            f"{result['cost']:.2f}",
            by_depth(result),
            f"{result['changed_verdicts']} of {result['rows']}",
            *(_mean(result[name]) for name in ("macro_f1", "whole_macro_f1")),
        ]
        for result in results
    ]
    return markdown_table(header, rows)


def _macro_f1(rows: Sequence[Row], results: Sequence[ScoreResult]) -> dict[str, float]:
    """Of the verdicts on the labelled rows, by data set."""
    return macro_f1_by_dataset(rows, [bool(one.is_harmful) for one in results])


def _mean(by_dataset: Mapping[str, float]) -> str:
    return f"{np.mean([*by_dataset.values()]):.4f}" if by_dataset else "-"


def _scored(guard: Guard, texts: Sequence[Text], size: int) -> list[ScoreResult]:
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    return [result for part in parts for result in guard.score_batch(part)]
