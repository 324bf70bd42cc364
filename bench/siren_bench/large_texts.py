"""What texts that are too large, or of one character, cost: time, memory, and the neighbours."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siren_bench.record import markdown_table
from siren_runtime import Guard, SirenError

from .process import in_fresh_process, peak_memory, resident_memory

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


def measure_large_texts(bundle: Path, rounds: int) -> list[dict[str, Any]]:
    """Score each text in a process of its own, alone and beside another thread's short texts."""
    return [in_fresh_process(_measure, str(bundle), name, rounds) for name in TEXTS]


def _measure(bundle: str, name: str, rounds: int) -> dict[str, Any]:
    text = TEXTS[name]
    guard = Guard.load(bundle)
    guard.score(_NEIGHBOUR)
    before = resident_memory()
    outcome, seconds = "", []
    for _ in range(rounds):
        start = time.perf_counter()
        outcome = _outcome(guard, text)
        seconds.append(time.perf_counter() - start)
    after, peak = resident_memory(), peak_memory()
    with _neighbours(guard) as quiet:
        time.sleep(1)
    with _neighbours(guard) as beside:
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            _outcome(guard, text)
    return {
        "text": name,
        "outcome": outcome,
        "seconds": seconds,
        "resident_growth_bytes": after - before,
        "peak_growth_bytes": max(peak - before, 0),
        "neighbour_quiet_ms": statistics.median(quiet),
        "neighbour_beside_ms": statistics.median(beside),
    }


def _outcome(guard: Guard, text: str) -> str:
    try:
        result = guard.score(text)
    except SirenError as error:
        return f"refused: {str(error).partition(';')[0]}"
    return f"scored, {result.tokens:,} tokens"


@contextmanager
def _neighbours(guard: Guard) -> Iterator[list[float]]:
    """Score short texts in another thread meanwhile; what each took is in milliseconds."""
    taken: list[float] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            start = time.perf_counter()
            guard.score(_NEIGHBOUR)
            taken.append((time.perf_counter() - start) * 1e3)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join()


def large_texts_table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    rows = [
        [
            result["text"],
            result["outcome"],
            f"{statistics.median(result['seconds']) * 1e3:,.1f}",
            f"{result['resident_growth_bytes'] / 1e6:.1f}",
            f"{result['peak_growth_bytes'] / 1e6:.1f}",
            f"{result['neighbour_quiet_ms']:.1f}",
            f"{result['neighbour_beside_ms']:.1f}",
        ]
        for result in results
    ]
    header = [
        "text", "outcome", "ms", "resident, + MB", "peak, + MB", "a neighbour alone, ms",
        "a neighbour beside it, ms",
    ]  # fmt: skip
    return markdown_table(header, rows)
