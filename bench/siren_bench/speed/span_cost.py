"""What spans and windows cost: a guard's time on texts, with and without spans, in pairs."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from siren_bench.records.record import markdown_table
from siren_bench.records.samples import paired_ratio, spread, timed_in_turns
from siren_runtime import Guard
from siren_runtime.bundle.progress import Progress, by_length


def measure_span_cost(
    guard: Guard, texts: Mapping[int, str], sizes: Sequence[int], rounds: int, progress: Progress
) -> list[dict[str, Any]]:
    """Time texts, tokens -> text, in turns: without spans and with them, `rounds` times.

    Args:
        sizes: of the spans, in tokens.
    """
    results = []
    tell = by_length(progress, "timing", texts)
    for tokens, text in texts.items():
        spans = guard.score(text, spans=sizes).spans
        plain, with_spans = timed_in_turns(
            [partial(guard.score, text, spans=asked) for asked in (False, sizes)], rounds
        )
        results.append(
            {
                "tokens": tokens,
                "sizes": [span.tokens for span in spans],
                "plain_ms": plain,
                "spans_ms": with_spans,
                "ratio": paired_ratio(with_spans, plain),
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
            spread([b / a for a, b in zip(result["plain_ms"], result["spans_ms"], strict=True)]),
        ]
        for result in results
    ]
    header = ["tokens", "whole text, ms", "ms a token", "with spans, ms", "spans / whole"]
    return markdown_table(header, rows)
