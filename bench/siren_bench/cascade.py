"""What exits save: a guard's time on labelled texts with and without them, in turns."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from siren_bench.corpus import Row
from siren_bench.record import markdown_table
from siren_runtime import Guard, ScoreResult
from siren_runtime.bundle.progress import Progress


def measure_cascade(
    exits: Guard,
    whole: Guard,
    rows: Sequence[Row],
    sizes: Sequence[int],
    rounds: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Score all rows in batches of each size, `rounds` times by each guard in turns.

    Args:
        exits, whole: of one bundle, opened with exits and without.
    """
    texts = [row.text for row in rows]
    results = []
    for number, size in enumerate(sizes):
        with_exits, without = [], []
        ours = _scored(exits, texts, size)  # a warm-up too
        theirs = _scored(whole, texts, size)
        for done in range(rounds):
            with_exits.append(_milliseconds(exits, texts, size))
            without.append(_milliseconds(whole, texts, size))
            progress("timing", number * rounds + done + 1, len(sizes) * rounds)
        blocks = whole.manifest.backbone.blocks_kept
        depths = [result.exit or blocks for result in ours]
        tokens = [result.tokens for result in ours]
        changed = sum(a.is_harmful != b.is_harmful for a, b in zip(ours, theirs, strict=True))
        results.append(
            {
                "batch": size,
                "rows": len(texts),
                "blocks": blocks,
                "exits": {depth: depths.count(depth) for depth in sorted(set(depths))},
                "cost": sum(map(int.__mul__, tokens, depths)) / (sum(tokens) * blocks),
                "changed_verdicts": changed,
                "exits_ms": with_exits,
                "whole_ms": without,
                "ratio": statistics.median(a / b for a, b in zip(with_exits, without, strict=True)),
            }
        )
    return results


def cascade_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the medians as Markdown."""
    header = [
        "batch", "whole guard, ms a text", "with exits, ms a text", "time", "cost in blocks",
        "rows by depth", "changed verdicts",
    ]  # fmt: skip
    rows = [
        [
            str(result["batch"]),
            f"{statistics.median(result['whole_ms']) / result['rows']:.2f}",
            f"{statistics.median(result['exits_ms']) / result['rows']:.2f}",
            f"{result['ratio']:.2f}x",
            f"{result['cost']:.2f}",
            ", ".join(f"{depth}: {count}" for depth, count in result["exits"].items()),
            f"{result['changed_verdicts']} of {result['rows']}",
        ]
        for result in results
    ]
    return markdown_table(header, rows)


def _scored(guard: Guard, texts: Sequence[str], size: int) -> list[ScoreResult]:
    if size == 1:
        return [guard.score(text) for text in texts]
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    return [result for part in parts for result in guard.score_batch(part)]


def _milliseconds(guard: Guard, texts: Sequence[str], size: int) -> float:
    start = time.perf_counter()
    _scored(guard, texts, size)
    return (time.perf_counter() - start) * 1e3
