"""Latency, throughput, memory and fidelity of engines on a GPU, each beside the device's floor."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

from siren_bench.engines.cost import ModelSize
from siren_bench.engines.engine import Engine, SirenEdge
from siren_bench.engines.process import EngineProcess
from siren_bench.quality.fidelity import compare_scores
from siren_bench.records.record import markdown_table
from siren_bench.records.samples import reason
from siren_bench.speed.latency import latency_table, measure_latency
from siren_runtime.errors import BackendError

from .roofline import GpuCeilings, gpu_floor_seconds

Loaded = list[tuple[Engine, EngineProcess]]
Entries = list[dict[str, Any]]


def load_one_by_one(
    stack: ExitStack, engines: Sequence[Engine], used: Callable[[], int], text: str
) -> tuple[Loaded, Entries, dict[str, str]]:
    """Load engines one after another, each of which scores `text`.

    Args:
        stack: Ends their processes.
        used: Bytes of device memory in use.

    Returns:
        The engines that loaded; how many bytes each model added, loaded and having scored; and
        for each engine that failed why.

    Raises:
        BackendError: none loaded.
    """
    loaded: Loaded = []
    memory: Entries = []
    failed: dict[str, str] = {}
    processes: dict[Hashable, EngineProcess] = {}
    for engine in engines:
        try:
            if engine.model_key not in processes:
                before = used()
                process = stack.enter_context(EngineProcess(engine))
                process.score(engine, text)
                processes[engine.model_key] = process
                memory.append({"kind": "memory", "engine": engine.name, "bytes": used() - before})
            loaded.append((engine, processes[engine.model_key]))
        except Exception as error:  # noqa: PERF203 - whatever a peer's libraries raise
            failed[engine.name] = reason(error)
    if not loaded:
        reasons = " | ".join(f"{name}: {why}" for name, why in failed.items())
        raise BackendError(f"no engine can be loaded: {reasons}")
    return loaded, memory, failed


def latency_entries(
    loaded: Loaded, texts: Mapping[int, str], rounds: int, size: ModelSize, ceilings: GpuCeilings
) -> tuple[Entries, dict[str, str]]:
    """Time one text at a time, as `measure_latency`, with the floor of each entry."""
    works = {engine.name: engine.work for engine, _ in loaded}
    entries, failed = measure_latency(loaded, texts, rounds, warm_up=5, budget=120)
    for entry in entries:
        floor = gpu_floor_seconds(works[entry["engine"]], size, entry["tokens"], 1, ceilings)
        entry |= {
            "kind": "latency",
            "floor_s": floor,
            "roofline_share": floor / entry["median_s"],
        }
    return entries, failed


def throughput_entries(
    loaded: Loaded,
    text: str,
    tokens: int,
    batches: Sequence[int],
    rounds: int,
    size: ModelSize,
    ceilings: GpuCeilings,
) -> Entries:
    """Time batches of one text of `tokens` tokens; generative guards, which take one, are left out.

    The time is that of the call, tokenization included.
    """
    entries: Entries = []
    for engine, process in loaded:
        if engine.work.new_tokens:
            continue
        for batch in batches:
            budgeted = engine
            if isinstance(engine, SirenEdge):
                budgeted = replace(engine, token_budget=batch * tokens)
            calls = [[text] * batch]
            for _ in range(3):  # a shape's CUDA graph is captured in its first runs
                process.score_batches(budgeted, calls)
            samples = [process.score_batches(budgeted, calls)[0] for _ in range(rounds)]
            floor = gpu_floor_seconds(engine.work, size, tokens, batch, ceilings)
            entries.append(
                {
                    "kind": "throughput",
                    "engine": engine.name,
                    "batch": batch,
                    "tokens": tokens,
                    "texts_per_s": batch / median(samples),
                    "floor_s": floor,
                    "roofline_share": floor / median(samples),
                    "samples_s": samples,
                }
            )
    return entries


def fidelity_entries(
    loaded: Loaded, texts: Sequence[str], reference: Sequence[float], threshold: float
) -> Entries:
    """Compare each engine's scores with the reference's; what answers in words is left out."""
    entries: Entries = []
    for engine, process in loaded:
        if engine.work.new_tokens:
            continue
        scores = scores_of(process, engine, texts)
        compared = compare_scores(engine.name, scores, reference, threshold)
        entries.append({"kind": "fidelity", **compared})
    return entries


def gpu_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out latency, throughput, memory and fidelity, a table each."""

    def of(kind: str) -> list[Mapping[str, Any]]:
        return [entry for entry in results if entry["kind"] == kind]

    rows = [
        (e["engine"], str(e["batch"]), str(e["tokens"]), f"{e['texts_per_s']:,.1f}", _share(e))
        for e in of("throughput")
    ]
    header = ["engine", "batch", "tokens", "texts/s", "share of roofline"]
    throughput = markdown_table(header, rows)
    memory = markdown_table(
        ["engine", "device memory, GB"],
        [[e["engine"], f"{e['bytes'] / 1e9:.2f}"] for e in of("memory")],
    )
    keys = ("max_difference", "mean_difference")
    fidelity = markdown_table(
        ["engine", "max difference", "mean difference", "equal verdicts"],
        [
            [e["engine"], *(f"{e[key]:.1e}" for key in keys), f"{e['verdict_agreement']:.1%}"]
            for e in of("fidelity")
        ],
    )
    return "\n".join((latency_table(of("latency")), throughput, memory, fidelity))


def scores_of(process: EngineProcess, engine: Engine, texts: Sequence[str]) -> list[float]:
    """Score texts one by one with an engine that gives scores."""
    scores = [process.score(engine, text)[1] for text in texts]
    return [score for score in scores if score is not None]


def _share(entry: Mapping[str, Any]) -> str:
    return f"{entry['roofline_share']:.0%}"
