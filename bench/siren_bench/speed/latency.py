"""Latency of one text at a time, engine against engine, interleaved."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from siren_bench.engines.cost import ModelSize
from siren_bench.engines.engine import Engine, SirenEdge
from siren_bench.engines.process import EngineProcess
from siren_bench.records.record import markdown_table
from siren_bench.records.samples import engines_in_turns, p95, paired_ratio
from siren_runtime.bundle.progress import Progress, silent

from .roofline import Ceilings, floor_seconds

Loaded = Sequence[tuple[Engine, EngineProcess]]


def measure_latency(
    engines: Loaded,
    texts: Mapping[int, str],
    rounds: int,
    *,
    warm_up: int = 2,
    budget: float = float("inf"),
    slowest: float = float("inf"),
    progress: Progress = silent,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Time every engine on every text, one after the other in each round.

    What disturbs the machine for a while disturbs every engine of that round, so ratios are
    taken pair by pair, within a round. The order turns round every second round.

    Args:
        engines: The first is the one that the others are compared with.
        texts: Number of tokens to the text of that length.
        rounds: Samples of each engine and length.
        warm_up: Rounds before these that do not count.
        budget: Seconds at each length after which no further round starts, once there are three.
        slowest: An engine, but for the first, whose median is above this many seconds is left
            out at the lengths that follow.
        progress: Called after each length.

    Returns:
        One entry for each length and engine: raw samples, median and 95th percentile in
        seconds, the score, the median ratio of its time to the first engine's, and such ratios
        to each of our engines by name. And for each engine that failed at a length why; it has
        entries for the lengths before.

    Raises:
        Exception: the first engine fails.
    """
    results: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    able = list(engines)
    for number, (tokens, text) in enumerate(texts.items()):
        timed, broken = _time_rounds(able, text, rounds, warm_up, budget)
        failed |= {name: f"at {tokens} tokens: {why}" for name, why in broken.items()}
        results += _entries(tokens, timed)
        medians = {one.engine.name: median(one.seconds) for one in timed}
        able = [
            (engine, process)
            for engine, process in able
            if engine.name in medians and (engine is able[0][0] or medians[engine.name] <= slowest)
        ]
        progress("timing", number + 1, len(texts))
    return results, failed


@dataclass(frozen=True)
class _Timed:
    """An engine's samples at one length, and its score of the text."""

    engine: Engine
    seconds: list[float]
    score: float | None


def _time_rounds(
    engines: Loaded, text: str, rounds: int, warm_up: int, budget: float
) -> tuple[list[_Timed], dict[str, str]]:
    """Time every engine on one text in each round; and for each engine that failed why."""
    scores: dict[str, float | None] = {}

    def score(engine: Engine, process: EngineProcess, _: int) -> float:
        seconds, scores[engine.name] = process.score(engine, text)
        return seconds

    start = time.monotonic()
    samples, failed = engines_in_turns(
        [partial(score, *one) for one in engines],
        rounds,
        warm_up,
        go_on=lambda number: number < min(3, rounds) or time.monotonic() - start <= budget,
    )
    timed = [
        _Timed(engine, seconds, scores[engine.name])
        for i, ((engine, _), seconds) in enumerate(zip(engines, samples, strict=True))
        if i not in failed
    ]
    return timed, {engines[i][0].name: why for i, why in failed.items()}


def _entries(tokens: int, timed: Sequence[_Timed]) -> list[dict[str, Any]]:
    """Describe what one length took each engine; the first is the one compared with."""
    ours = {one.engine.name: one.seconds for one in timed if isinstance(one.engine, SirenEdge)}
    return [
        {
            "tokens": tokens,
            "engine": one.engine.name,
            "median_s": median(one.seconds),
            "p95_s": p95(one.seconds),
            "ratio": paired_ratio(one.seconds, timed[0].seconds),
            "ratios": {name: paired_ratio(one.seconds, our) for name, our in ours.items()},
            "score": one.score,
            "samples_s": one.seconds,
        }
        for one in timed
    ]


def add_shares(
    results: Sequence[dict[str, Any]],
    engines: Loaded,
    size: ModelSize,
    ceilings: Ceilings,
) -> None:
    """Add to each entry the machine's floor in seconds and the share of it that was reached."""
    works = {engine.name: engine.work for engine, _ in engines}
    for entry in results:
        entry["floor_s"] = floor_seconds(works[entry["engine"]], size, entry["tokens"], ceilings)
        entry["roofline_share"] = entry["floor_s"] / entry["median_s"]


def latency_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out a row for each engine: median (95th percentile) in milliseconds at each length.

    With it the ratio to the first engine, and the share of the roofline where there is one.
    """
    lengths = list(dict.fromkeys(entry["tokens"] for entry in results))
    share = ", share of roofline" if any("roofline_share" in entry for entry in results) else ""
    header = [f"ms: median (p95), ratio{share}", *(f"{n} tokens" for n in lengths)]
    rows = []
    for name in dict.fromkeys(entry["engine"] for entry in results):
        entries = {e["tokens"]: e for e in results if e["engine"] == name}
        rows.append([name, *(_cell(entries.get(n)) for n in lengths)])
    return markdown_table(header, rows)


def ratio_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out how many times as long every engine takes as each of ours, pair by pair."""
    lengths = list(dict.fromkeys(entry["tokens"] for entry in results))
    rows = []
    for name in dict.fromkeys(entry["engine"] for entry in results):
        entries = {e["tokens"]: e["ratios"] for e in results if e["engine"] == name}
        for ours in next(iter(entries.values())):
            found = [entries.get(n, {}).get(ours) for n in lengths]
            cells = ["" if ratio is None else f"{ratio:.2f}x" for ratio in found]
            rows.append([name, ours, *cells])
    return markdown_table(["time of", "over that of", *(f"{n} tokens" for n in lengths)], rows)


def samples_line(results: Sequence[Mapping[str, Any]], warm_up: int) -> str:
    """Say in one sentence how many samples medians and percentiles are of."""
    counts = {entry["tokens"]: len(entry["samples_s"]) for entry in results}
    few, many = min(counts.values()), max(counts.values())
    shown = f"{few}" if few == many else f"{few} to {many}"
    return f"Samples of each engine and length: {shown}; before them, not counted: {warm_up}."


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds with three digits or so."""
    return three_digits(1e3 * seconds)


def three_digits(value: float) -> str:
    """Write a number from 0.01 with three digits or so."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    parts = [f"{milliseconds(entry['median_s'])} ({milliseconds(entry['p95_s'])})"]
    parts.append(f"{entry['ratio']:.2f}x")
    if "roofline_share" in entry:
        parts.append(f"{entry['roofline_share']:.0%}")
    return ", ".join(parts)
