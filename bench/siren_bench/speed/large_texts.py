"""What texts that are too large, or of one character, cost: time, memory, and other callers."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siren_bench.engines.process import in_fresh_process, peak_memory, reset_peak, resident_memory
from siren_bench.records.record import markdown_table
from siren_runtime import Guard, SirenError
from siren_runtime.bundle.progress import Progress, silent

_MIB = 1 << 20
# Name -> the text; those over a bound are refused, the others read.
TEXTS = {
    "10 MB of <": "<" * 10_000_000,
    "10 MB of words": "the quick brown fox " * 500_000,
    "1 MiB of <": "<" * _MIB,
    "1 MiB of spaces": " " * _MIB,
    "1 MiB of one emoji": "🙂" * (_MIB // 4),
    "1 MiB of words": ("the quick brown fox " * _MIB)[:_MIB],
    "1 MiB without a space": "a" * _MIB,
}
_NEIGHBOUR = "How do I bake a loaf of bread at home?"
_CALLERS = 8
_SECONDS = 1.0  # that neighbours are watched, without the text and with it


def measure_large_texts(
    bundle: Path, rounds: int, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Score each text in a process of its own, alone and beside other threads' short texts."""
    results = []
    for name, text in TEXTS.items():
        measured = in_fresh_process(_measure, str(bundle), text, rounds, _SECONDS)
        results.append({"text": name, **measured})
        progress("scoring", len(results), len(TEXTS))
    return results


def _measure(bundle: str, text: str, rounds: int, watched_s: float) -> dict[str, Any]:
    guard = Guard.load(bundle)
    guard.score(_NEIGHBOUR)
    reset_peak()  # what loading took
    before = resident_memory()
    timed = [_timed(guard, text) for _ in range(rounds)]
    after, peak = resident_memory(), peak_memory()
    with _neighbours(guard) as quiet:
        time.sleep(watched_s)
    with _neighbours(guard) as beside:
        end = time.perf_counter() + watched_s
        timed_beside = [_timed(guard, text) for _ in range(rounds)]
        while time.perf_counter() < end:
            timed_beside.append(_timed(guard, text))
    return {
        "outcome": timed[-1][0],
        "seconds": [seconds for _, seconds in timed],
        "seconds_beside": statistics.median(seconds for _, seconds in timed_beside),
        "seconds_beside_most": max(seconds for _, seconds in timed_beside),
        "callers": _CALLERS,
        "resident_growth_bytes": after - before,
        "peak_growth_bytes": max(peak - before, 0),
        "neighbour_quiet_ms": statistics.median(quiet),
        "neighbour_beside_ms": statistics.median(beside),
    }


def _timed(guard: Guard, text: str) -> tuple[str, float]:
    """What comes of a text, and how many seconds it took."""
    start = time.perf_counter()
    outcome = _outcome(guard, text)
    return outcome, time.perf_counter() - start


def _outcome(guard: Guard, text: str) -> str:
    try:
        result = guard.score(text)
    except SirenError as error:
        return f"refused: {str(error).partition(';')[0]}"
    return f"scored, {result.tokens:,} tokens"


@contextmanager
def _neighbours(guard: Guard) -> Iterator[list[float]]:
    """Score short texts in other threads meanwhile; what each took is in milliseconds."""
    taken: list[float] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            start = time.perf_counter()
            guard.score(_NEIGHBOUR)
            taken.append((time.perf_counter() - start) * 1e3)

    threads = [threading.Thread(target=work) for _ in range(_CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield taken
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def large_texts_table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    rows = [
        [
            result["text"],
            result["outcome"],
            f"{statistics.median(result['seconds']) * 1e3:,.1f}",
            f"{result['seconds_beside'] * 1e3:,.1f}",
            f"{result['seconds_beside_most'] * 1e3:,.1f}",
            f"{result['resident_growth_bytes'] / 1e6:.1f}",
            f"{result['peak_growth_bytes'] / 1e6:.1f}",
            f"{result['neighbour_quiet_ms']:.1f}",
            f"{result['neighbour_beside_ms']:.1f}",
        ]
        for result in results
    ]
    header = [
        "text", "outcome", "ms", f"beside {_CALLERS} callers, ms", "at most, ms", "resident, + MB",
        "peak, + MB", "a caller without it, ms", "a caller beside it, ms",
    ]  # fmt: skip
    return markdown_table(header, rows)
