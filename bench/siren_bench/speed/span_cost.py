"""What spans and windows cost: a guard's time on texts, with and without spans, in pairs."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from siren_bench.records.record import markdown_table
from siren_runtime import Guard
from siren_runtime.bundle.progress import Progress, by_length


def measure_span_cost(
    guard: Guard, texts: Mapping[int, str], sizes: Sequence[int], rounds: int, progress: Progress
) -> list[dict[str, Any]]:
    """Time texts, tokens -> text, in pairs: without spans, then with them, `rounds` times.

    Args:
        sizes: of the spans, in tokens.
    """
    results = []
    tell = by_length(progress, "timing", texts)
    for tokens, text in texts.items():
        spans = guard.score(text, spans=sizes).spans  # a warm-up too
        plain, with_spans = [], []
        for _ in range(rounds):
            plain.append(_milliseconds(guard, text, spans=False))
            with_spans.append(_milliseconds(guard, text, spans=sizes))
        results.append(
            {
                "tokens": tokens,
                "sizes": [span.tokens for span in spans],
                "plain_ms": plain,
                "spans_ms": with_spans,
                "ratio": statistics.median(b / a for a, b in zip(plain, with_spans, strict=True)),
            }
        )
        tell(len(results))
    return results


def span_cost_table(results: list[dict[str, Any]]) -> str:
    """Return the medians as Markdown."""
    rows = [
        [
            f"{result['tokens']:,}",
            f"{statistics.median(result['plain_ms']):,.1f}",
            f"{statistics.median(result['plain_ms']) / result['tokens']:.3f}",
            f"{statistics.median(result['spans_ms']):,.1f}",
            f"{result['ratio']:.2f}x",
        ]
        for result in results
    ]
    header = ["tokens", "whole text, ms", "ms a token", "with spans, ms", "spans / whole"]
    return markdown_table(header, rows)


def _milliseconds(guard: Guard, text: str, *, spans: bool | Sequence[int]) -> float:
    start = time.perf_counter()
    guard.score(text, spans=spans)
    return (time.perf_counter() - start) * 1e3
