"""What a stream costs: a token, a chunk, many streams and a long one, against re-encoding.

llm-siren encodes the whole prefix at every call. Calling it for each of 512 prefixes takes an
hour for a 0.6B backbone on two cores, so it is timed at a few lengths, and the cost of the
lengths between is interpolated: its totals are extrapolations and are called so.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from siren_runtime import Guard
from siren_runtime.bundle.progress import Progress, silent

from .engines import LlmSiren, TorchDtype
from .process import in_fresh_process
from .record import markdown_table
from .stream_memory import measure_memory

PEERS: tuple[TorchDtype, ...] = ("bfloat16", "float32")

_NEAR = 8  # tokens on each side of a position whose median is the cost there
_BANDWIDTH_BYTES = 1 << 29

Results = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        tokens: of the stream that is scored at every token, and every `chunk` tokens.
        early, late: positions whose cost a token is compared.
        sampled: prefix lengths at which llm-siren is timed.
        streams, steps: of the batch: how many streams, and steps of one token each.
        long_tokens: of the long stream, which is fed in chunks.
        peers: dtypes of llm-siren.
    """

    threads: int = 2
    tokens: int = 512
    chunk: int = 16
    early: int = 20
    late: int = 500
    sampled: tuple[int, ...] = (16, 128, 256, 512)
    streams: int = 32
    steps: int = 6
    long_tokens: int = 4000
    peers: tuple[TorchDtype, ...] = PEERS


def measure_stream(
    bundle: Path,
    head: Path,
    texts: Mapping[int, str],
    plan: Plan,
    progress: Progress = silent,
) -> Results:
    """Measure a bundle's streams and llm-siren's `score_streaming`, each in a fresh process.

    Args:
        head: the bundle's head, whose base_model.model_id is a local folder.
        texts: of `plan.sampled` lengths, for llm-siren.
        progress: called before each measurement, with what it is of.

    Returns:
        Raw samples in seconds and bytes, and what `summarise` makes of them.
    """
    parts = 4 + len(plan.peers)
    progress("single tokens and chunks", 0, parts)
    results = in_fresh_process(_one_stream, bundle, plan)
    progress("many streams", 1, parts)
    results |= in_fresh_process(_many_streams, bundle, plan)
    progress("memory", 2, parts)
    results["memory_bytes"] = measure_memory(bundle, plan.threads)
    progress("a long stream", 3, parts)
    results |= in_fresh_process(_long_stream, bundle, plan)
    for number, dtype in enumerate(plan.peers):
        progress(f"llm-siren {dtype}", 4 + number, parts)
        engine = LlmSiren(head, dtype, plan.threads)
        results[f"llm_siren_{dtype}_s"] = in_fresh_process(_prefixes, engine, dict(texts))
    results["weight_bytes"] = step_weight_bytes(bundle / "stream.onnx")
    results["bandwidth_bytes_per_s"] = in_fresh_process(memory_bandwidth, plan.threads)
    return {**results, "summary": summarise(results, plan)}


def summarise(results: Mapping[str, Any], plan: Plan) -> dict[str, float]:
    """Reduce raw samples to the figures of the table; ratios are of seconds, ours below."""
    singles, chunks = results["single_s"], results["chunk_s"]
    late = _near(singles, plan.late)
    per_chunked_token = median(chunks) / plan.chunk
    floor = results["weight_bytes"] / results["bandwidth_bytes_per_s"]
    one = median(results["one_step_s"])
    summary = {
        "total_single_s": sum(singles),
        "total_chunked_s": sum(chunks),
        "early_s": _near(singles, plan.early),
        "late_s": late,
        "late_to_early": late / _near(singles, plan.early),
        "chunked_to_single": per_chunked_token / median(singles),
        "one_stream_tokens_per_s": 1 / one,
        "batch_tokens_per_s": plan.streams / median(results["batch_step_s"]),
        "batch_to_one": plan.streams * one / median(results["batch_step_s"]),
        "bytes_per_stream": results["bytes_per_stream"],
        **{f"{name}_bytes": size for name, size in results["memory_bytes"].items()},
        "floor_s": floor,
        "floor_reached": floor / median(singles),
    }
    for dtype in plan.peers:
        times = results[f"llm_siren_{dtype}_s"]
        lengths = sorted(int(length) for length in times)
        costs = [median(times[length]) for length in lengths]
        every = np.interp(np.arange(1, plan.tokens + 1), lengths, costs)
        summary[f"{dtype}_every_token_s"] = float(every.sum())
        summary[f"{dtype}_every_chunk_s"] = float(every[plan.chunk - 1 :: plan.chunk].sum())
        for unit, ours in (("token", sum(singles)), ("chunk", sum(chunks))):
            summary[f"{dtype}_every_{unit}_ratio"] = summary[f"{dtype}_every_{unit}_s"] / ours
    return summary


def stream_table(summary: Mapping[str, float], plan: Plan) -> str:
    """Lay out the figures, one a row."""
    rows = [
        [f"{plan.tokens} tokens, scored at every one, s", f"{summary['total_single_s']:.1f}"],
        [f"{plan.tokens} tokens, every {plan.chunk}, s", f"{summary['total_chunked_s']:.1f}"],
    ]
    for dtype in plan.peers:
        for unit, every in (("token", "every one"), ("chunk", f"every {plan.chunk}")):
            rows.append(
                [
                    f"llm-siren {dtype}, {every}, s (extrapolated), ratio",
                    f"{summary[f'{dtype}_every_{unit}_s']:.0f}, "
                    f"{summary[f'{dtype}_every_{unit}_ratio']:.1f}x",
                ]
            )
    rows += [
        [f"a token at position {plan.early}, ms", f"{1e3 * summary['early_s']:.1f}"],
        [f"a token at position {plan.late}, ms", f"{1e3 * summary['late_s']:.1f}"],
        [f"position {plan.late} to {plan.early}", f"{summary['late_to_early']:.2f}x"],
        [f"a token in chunks of {plan.chunk} to alone", f"{summary['chunked_to_single']:.2f}x"],
        ["one stream, tokens a second", f"{summary['one_stream_tokens_per_s']:.1f}"],
        [
            f"{plan.streams} streams in a batch, tokens a second",
            f"{summary['batch_tokens_per_s']:.1f} ({summary['batch_to_one']:.1f}x)",
        ],
        ["memory a stream, MB", f"{summary['bytes_per_stream'] / 1e6:.1f}"],
        ["memory of a guard that scores, MB", f"{summary['scoring_bytes'] / 1e6:.0f}"],
        [
            "that streams and scores, MB; switching to it, at most",
            f"{summary['streaming_bytes'] / 1e6:.0f}; {summary['switching_peak_bytes'] / 1e6:.0f}",
        ],
        [
            "floor: weights over memory bandwidth, ms a token",
            f"{1e3 * summary['floor_s']:.1f} ({summary['floor_reached']:.0%} reached)",
        ],
    ]
    return markdown_table(["stream", "measured"], rows)


def memory_bandwidth(threads: int) -> float:
    """Measure how fast memory is read, in bytes a second: the best of several sums."""
    array = np.ones(_BANDWIDTH_BYTES // 4, np.float32)
    parts = np.array_split(array, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            start = time.perf_counter()
            list(pool.map(np.max, parts))  # one instruction a vector, so that memory is the limit
            best = max(best, array.nbytes / (time.perf_counter() - start))
    return best


def step_weight_bytes(graph: Path) -> int:
    """The bytes of weights that each step reads: all but tables, of which it reads a row."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    return sum(
        int(entry.value)
        for tensor in model.graph.initializer
        if not tensor.name.startswith(("embed_tokens", "rotary"))
        for entry in tensor.external_data
        if entry.key == "length"
    )


def _one_stream(bundle: Path, plan: Plan) -> Results:
    guard = Guard.load(bundle, backend="cpu", threads=plan.threads, streaming=True)
    ids = _ids(plan.tokens)
    with guard.stream() as stream:
        stream.feed_tokens(ids[:4])
        stream.reset()
        singles = _timed(stream.feed_tokens, [[token] for token in ids])
        alone = [score.score for score in stream.scores]
        stream.reset()
        pieces = [ids[i : i + plan.chunk] for i in range(0, len(ids), plan.chunk)]
        chunks = _timed(stream.feed_tokens, pieces)
        chunked = [score.score for score in stream.scores]
    difference = max(abs(a - b) for a, b in zip(alone, chunked, strict=True))
    return {"single_s": singles, "chunk_s": chunks, "max_score_difference": difference}


def _many_streams(bundle: Path, plan: Plan) -> Results:
    guard = Guard.load(bundle, backend="cpu", threads=plan.threads, streaming=True)
    one: list[float] = []
    batch: list[float] = []
    with guard.streams() as streams:
        alone = [streams.open()]
        together = [streams.open() for _ in range(plan.streams)]
        streams.feed([(stream, _ids(plan.chunk)) for stream in alone + together])
        for step in range(plan.steps):  # interleaved, since the machine may be busy at times
            for group, samples in ((alone, one), (together, batch)):
                pieces = [(stream, [5 + step]) for stream in group]
                samples += _timed(streams.feed, [pieces])
        size = together[0].memory_bytes
    return {"one_step_s": one, "batch_step_s": batch, "bytes_per_stream": size}


def _long_stream(bundle: Path, plan: Plan) -> Results:
    guard = Guard.load(bundle, backend="cpu", threads=plan.threads, streaming=True)
    ids, process = _ids(plan.long_tokens), psutil.Process()
    samples = []
    limit = guard.manifest.backbone.context_length or 0
    with guard.stream(max_tokens=min(plan.long_tokens, limit)) as stream:
        started = time.perf_counter()
        for start in range(0, len(ids), plan.chunk):
            stream.feed_tokens(ids[start : start + plan.chunk])
            samples.append(
                {
                    "tokens": start + len(ids[start : start + plan.chunk]),
                    "seconds": time.perf_counter() - started,
                    "resident_bytes": process.memory_info().rss,
                    "stream_bytes": stream.memory_bytes,
                }
            )
    return {"long": samples}


def _prefixes(engine: LlmSiren, texts: Mapping[int, str]) -> dict[int, list[float]]:
    scorer = engine.load()
    scorer(texts[min(texts)])
    return {length: _timed(scorer, [text] * 2) for length, text in texts.items()}


def _timed(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[float]:
    seconds = []
    for argument in arguments:
        start = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - start)
    return seconds


def _near(samples: Sequence[float], position: int) -> float:
    return median(samples[max(0, position - _NEAR) : position + _NEAR])


def _ids(count: int) -> list[int]:
    """Token ids that every vocabulary has."""
    return [int(token) for token in np.random.default_rng(0).integers(5, 300, count)]
