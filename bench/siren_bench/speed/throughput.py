"""Throughput over a real corpus, as it comes: texts and tokens a second."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from siren_bench.engines.engine import Engine, SirenEdge
from siren_bench.engines.process import EngineProcess
from siren_bench.records.record import markdown_table
from siren_bench.records.samples import engines_in_turns, paired_ratio
from siren_runtime.bundle.progress import Progress, silent

from .latency import three_digits


@dataclass(frozen=True)
class Case:
    """An engine that gets `batch` texts a call."""

    engine: Engine
    process: EngineProcess
    batch: int


def sweep(
    engines: Sequence[tuple[Engine, EngineProcess]],
    batches: Sequence[int],
    token_budgets: Sequence[int] = (),
) -> list[Case]:
    """List every engine at every batch size, and ours with token budgets at the largest one.

    Peers get texts one by one too, which they may be quickest at, since they pad a batch.
    """
    cases = []
    for engine, process in engines:
        if not isinstance(engine, SirenEdge):
            cases += [Case(engine, process, batch) for batch in sorted({1, *batches})]
            continue
        cases += [Case(engine, process, batch) for batch in batches]
        cases += [
            Case(replace(engine, token_budget=budget), process, batches[-1])
            for budget in token_budgets
        ]
    return cases


def measure_throughput(
    cases: Sequence[Case],
    texts: Sequence[str],
    tokens: int,
    rounds: int,
    progress: Progress = silent,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Score the corpus with every case, one after the other in each round.

    Args:
        texts: In the order in which they come; a call gets the next `batch` of them.
        tokens: Of all texts, after truncation.
        progress: Called after each pass over the corpus.

    Returns:
        One entry a case: seconds of each pass, texts and tokens a second by the median. And for
        each case that failed why.

    Raises:
        Exception: the first case fails.
    """
    longest = [[max(texts, key=len)]]

    def score(case: Case, number: int) -> float:
        calls = [texts[k : k + case.batch] for k in range(0, len(texts), case.batch)]
        # A model's first call is slower, and does not count.
        return case.process.score_batches(case.engine, longest if number < 0 else calls)[0]

    samples, failed = engines_in_turns(
        [partial(score, case) for case in cases],
        rounds,
        done=lambda passes: progress("scoring", passes, rounds * len(cases)),
    )
    results = [
        _entry(case, texts, tokens, times)
        for i, (case, times) in enumerate(zip(cases, samples, strict=True))
        if i not in failed
    ]
    return results, {
        f"{cases[i].engine.name}, batch {cases[i].batch}": why for i, why in failed.items()
    }


def _entry(case: Case, texts: Sequence[str], tokens: int, times: list[float]) -> dict[str, Any]:
    return {
        "engine": case.engine.name,
        "batch": case.batch,
        "texts": len(texts),
        "tokens": tokens,
        "texts_per_s": len(texts) / median(times),
        "tokens_per_s": tokens / median(times),
        "samples_s": times,
    }


@dataclass(frozen=True)
class Best:
    """An engine at its best setting.

    Attributes:
        entry: What was measured there.
        setting: Its batch and, of ours, its token budget, in words.
        ratio: How much longer it takes than the first engine at its best.
    """

    entry: Mapping[str, Any]
    setting: str
    ratio: float


def best_settings(results: Sequence[Mapping[str, Any]]) -> dict[str, Best]:
    """Return each engine, by its name without a token budget, at its best setting."""
    best: dict[str, Mapping[str, Any]] = {}
    for entry in results:
        name = base_name(entry["engine"])
        if name not in best or entry["texts_per_s"] > best[name]["texts_per_s"]:
            best[name] = entry
    first = next(iter(best.values()))
    return {
        name: Best(
            entry,
            f"batch {entry['batch']}{entry['engine'].removeprefix(name)}",
            paired_ratio(entry["samples_s"], first["samples_s"]),
        )
        for name, entry in best.items()
    }


def throughput_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out texts (tokens) a second, a row for each engine and token budget."""
    batches = sorted({entry["batch"] for entry in results})
    header = ["texts/s (tokens/s)", *(f"batch {batch}" for batch in batches), "ratio at best"]
    best = best_settings(results)
    rows = []
    for name in dict.fromkeys(entry["engine"] for entry in results):
        entries = {e["batch"]: e for e in results if e["engine"] == name}
        row = [name, *(_cell(entries.get(batch)) for batch in batches)]
        at_best = f"{best[name].ratio:.2f}x, {best[name].setting}" if name in best else ""
        rows.append([*row, at_best])
    return markdown_table(header, rows)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{three_digits(entry['texts_per_s'])} ({entry['tokens_per_s']:,.0f})"


def base_name(name: str) -> str:
    """Return an engine's name without its token budget."""
    return name.partition(",")[0] if name.startswith("siren-edge") else name
