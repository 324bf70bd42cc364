"""A server under load for a long time: is its memory flat, are its verdicts the guard's own."""

import time
from collections import Counter
from collections.abc import Sequence
from statistics import linear_regression
from typing import Any

from siren_bench.records.record import markdown_table
from siren_runtime.bundle.progress import Progress, silent

from .load import SCORED, Load, summary, wrong
from .server import Server
from .subjects import OverHttp, SubjectProcess, usage


def soak(
    running: Server,
    texts: list[str],
    expected: Sequence[float],
    callers: int,
    minutes: float,
    slice_s: float,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Let callers ask in slices, and look at the server's memory after each.

    Args:
        expected: the guard's own score of each text.

    Returns:
        One entry a slice: `minute` of its end, `resident_bytes`, a summary, and how many scores
        were `wrong`. Each slice makes its connections anew.
    """
    count = max(2, round(60 * minutes / slice_s))
    entries = []
    with SubjectProcess(OverHttp(running.port)) as process:
        begun = time.monotonic()
        for number in range(count):
            progress("asking", number, count)
            load = Load(time.monotonic(), slice_s, callers, seed=number * callers)
            answers = process.answers(texts, load)
            entries.append(
                {
                    "minute": (time.monotonic() - begun) / 60,
                    "resident_bytes": usage(running.process.pid)[1],
                    "wrong": wrong(answers, expected),
                    **summary(answers, load),
                }
            )
    return entries


def growth(entries: Sequence[dict[str, Any]]) -> float:
    """Bytes a minute by which memory grew in the second half, by least squares."""
    later = entries[len(entries) // 2 :]
    if len(later) < 2:
        return 0.0
    slope, _ = linear_regression(
        [entry["minute"] for entry in later], [entry["resident_bytes"] for entry in later]
    )
    return float(slope)


def soak_table(entries: Sequence[dict[str, Any]]) -> str:
    """Lay out a soak: what was answered, and memory over time."""
    statuses = Counter[str]()
    for entry in entries:
        statuses.update(entry["statuses"])
    half = entries[len(entries) // 2]
    requests, scored = sum(statuses.values()), statuses[str(SCORED)]
    rows = [
        ["minutes", f"{entries[-1]['minute']:.1f}"],
        ["requests", f"{requests:,}"],
        ["without a score", f"{requests - scored:,}"],
        ["wrong scores", f"{sum(entry['wrong'] for entry in entries):,}"],
        ["MB after the first slice", _megabytes(entries[0])],
        ["MB at half time", _megabytes(half)],
        ["MB at the end", _megabytes(entries[-1])],
        ["MB an hour, by the second half", f"{60 * growth(entries) / 1e6:+.1f}"],
    ]
    return markdown_table(["", "found"], rows)


def _megabytes(entry: dict[str, Any]) -> str:
    return f"{entry['resident_bytes'] / 1e6:.1f}"
