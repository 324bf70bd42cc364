"""Latency of one text at a time, engine against engine, interleaved."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import median, quantiles
from typing import Any

from .engines import Engine
from .process import EngineProcess
from .record import markdown_table

_WARM_UP = 2  # scores of each engine and length that are thrown away
_SETTLE = 0.01  # seconds between two samples, for the last engine's threads to go to sleep


def measure_latency(
    engines: Sequence[Engine],
    texts: Mapping[int, str],
    rounds: int,
    advance: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Time every engine on every text, one after the other in each round.

    What disturbs the machine for a while disturbs every engine of that round, so ratios are
    taken pair by pair, within a round. The order turns round every second round.

    Args:
        engines: The first is the one that the others are compared with.
        texts: Number of tokens to the text of that length.
        advance: Called after each round.

    Returns:
        One entry for each length and engine: raw samples, median and 95th percentile in
        seconds, the score, and the median ratio of its time to the first engine's.
    """
    results = []
    with ExitStack() as stack:
        processes = [stack.enter_context(EngineProcess(engine)) for engine in engines]
        for tokens, text in texts.items():
            samples: list[list[float]] = [[] for _ in engines]
            scores = [0.0] * len(engines)
            for round_number in range(-_WARM_UP, rounds):
                order = range(len(engines))
                for i in order if round_number % 2 == 0 else reversed(order):
                    time.sleep(_SETTLE)
                    seconds, scores[i] = processes[i].score(text)
                    if round_number >= 0:
                        samples[i].append(seconds)
                advance()
            for i, engine in enumerate(engines):
                results.append(
                    {
                        "tokens": tokens,
                        "engine": engine.name,
                        "median_s": median(samples[i]),
                        "p95_s": _p95(samples[i]),
                        "ratio": median(
                            theirs / ours
                            for theirs, ours in zip(samples[i], samples[0], strict=True)
                        ),
                        "score": scores[i],
                        "samples_s": samples[i],
                    }
                )
    return results


def rounds_in_all(texts: Mapping[int, str], rounds: int) -> int:
    """Return how often measure_latency calls `advance`."""
    return len(texts) * (rounds + _WARM_UP)


def latency_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out median (95th percentile) in milliseconds and the ratio to the first engine."""
    names = list(dict.fromkeys(result["engine"] for result in results))
    header = ["tokens", f"{names[0]}, ms"]
    for name in names[1:]:
        header += [f"{name}, ms", "ratio"]
    rows = []
    for tokens in dict.fromkeys(result["tokens"] for result in results):
        row = [str(tokens)]
        for result in (r for r in results if r["tokens"] == tokens):
            row.append(f"{1e3 * result['median_s']:.1f} ({1e3 * result['p95_s']:.1f})")
            if result["engine"] != names[0]:
                row.append(f"{result['ratio']:.2f}x")
        rows.append(row)
    return markdown_table(header, rows)


def _p95(samples: Sequence[float]) -> float:
    if len(samples) == 1:
        return samples[0]
    return quantiles(samples, n=20, method="inclusive")[-1]
