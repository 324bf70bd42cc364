"""What exits save in streams: the time of streamed texts with and without them, in turns."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from siren_bench.corpus import Row
from siren_bench.record import markdown_table
from siren_runtime import Guard, StreamResult
from siren_runtime.bundle.progress import Progress


def measure_stream_cascade(
    exits: Guard,
    whole: Guard,
    rows: Sequence[Row],
    sizes: Sequence[int],
    rounds: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Stream all rows in pieces of so many words, `rounds` times by each guard in turns.

    Args:
        exits, whole: of one bundle, opened with exits and without, to stream.
    """
    results = []
    for number, size in enumerate(sizes):
        texts = [_pieces(row.text, size) for row in rows]
        ours, _ = _streamed(exits, texts)  # a warm-up too
        theirs, _ = _streamed(whole, texts)
        with_exits, without = [], []
        for done in range(rounds):
            with_exits.append(_streamed(exits, texts)[1])
            without.append(_streamed(whole, texts)[1])
            progress("timing", number * rounds + done + 1, len(sizes) * rounds)
        blocks = whole.manifest.backbone.blocks_kept
        pairs = [*zip(ours, theirs, strict=True)]
        results.append(
            {
                "words": size,
                "rows": len(rows),
                "verdicts": len(ours),
                "tokens": sum(result.computed for result in theirs),
                "blocks": blocks,
                "exits": dict(sorted(Counter(result.exit or blocks for result in ours).items())),
                "changed_verdicts": sum(a.is_harmful != b.is_harmful for a, b in pairs),
                "exits_ms": with_exits,
                "whole_ms": without,
                "ratio": statistics.median(a / b for a, b in zip(with_exits, without, strict=True)),
            }
        )
    return results


def stream_cascade_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the medians as Markdown."""
    header = [
        "words of a piece", "whole guard, ms a token", "with exits, ms a token", "time",
        "verdicts by depth", "changed verdicts",
    ]  # fmt: skip
    rows = [
        [
            str(result["words"]),
            f"{statistics.median(result['whole_ms']) / result['tokens']:.2f}",
            f"{statistics.median(result['exits_ms']) / result['tokens']:.2f}",
            f"{result['ratio']:.2f}x",
            ", ".join(f"{depth}: {count}" for depth, count in result["exits"].items()),
            f"{result['changed_verdicts']} of {result['verdicts']}",
        ]
        for result in results
    ]
    return markdown_table(header, rows)


def _pieces(text: str, size: int) -> list[str]:
    words = text.split(" ")
    parts = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return [parts[0], *(f" {part}" for part in parts[1:])]


def _streamed(guard: Guard, texts: Sequence[Sequence[str]]) -> tuple[list[StreamResult], float]:
    """The verdict after each piece of each text, and the milliseconds of all."""
    results = []
    start = time.perf_counter()
    for pieces in texts:
        with guard.stream() as stream:
            results += [stream.feed(piece) for piece in pieces]
    return results, (time.perf_counter() - start) * 1e3
