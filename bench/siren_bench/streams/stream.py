"""What a stream costs: a token, a chunk, many streams and a long one, against its peers.

llm-siren encodes the whole prefix at every call. Calling it for each of 512 prefixes takes an
hour for a 0.6B backbone on two cores, so it is timed at a few lengths, and the cost of the
lengths between is interpolated: its totals are extrapolations and are called so.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from siren_bench.engines.engine import Engine, LlmSiren, SirenEdge
from siren_bench.engines.process import in_fresh_process
from siren_bench.peers.genai import Genai
from siren_bench.records.samples import reason
from siren_bench.subjects.texts import one_token_words
from siren_runtime import Guard
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import SirenError

from .memory import measure_memory
from .turns import Turns, measure_turns, token_ids, turn_ratios

_NEAR = 8  # tokens on each side of a position whose median is the cost there
_BANDWIDTH_BYTES = 1 << 29

Results = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        tokens: of the stream that is scored at every token, and every `chunk` tokens; it is fed
            as text, in words of one token.
        early, late: positions whose cost a token is compared.
        sampled: prefix lengths at which llm-siren is timed.
        streams, steps: of the batch: how many streams, and steps of one token each.
        long_tokens: of the long stream, which is fed in chunks.
        turn: tokens that a stream or a generator reads before the next one's turn.
        walks: how often they go through all of `tokens` in turns.
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
    turn: int = 32
    walks: int = 2


def measure_streams(
    engines: Sequence[Engine],
    texts: Mapping[int, str],
    plan: Plan,
    progress: Progress = silent,
) -> tuple[list[Results], dict[str, str]]:
    """Measure our streams and their peers, each part in a fresh process.

    Args:
        engines: ours; llm-siren, whose `score_streaming` is timed; and generators, which take
            turns with ours in one process.
        texts: of `plan.sampled` lengths, for llm-siren.
        progress: called before each measurement, with what it is of.

    Returns:
        Raw samples in seconds and bytes of each of our engines, with what `summarise` makes of
        them, and of each generator; and for each peer that does not run why not.

    Raises:
        Exception: one of ours fails.
    """
    ours = [engine for engine in engines if isinstance(engine, SirenEdge)]
    llm_siren = [engine for engine in engines if isinstance(engine, LlmSiren)]
    generators = [engine for engine in engines if isinstance(engine, Genai)]
    shared: Results = {}
    entries: list[Results] = [{"engine": engine.name} for engine in ours]
    parts: list[tuple[str, Results, Callable[[], Results]]] = [
        ("memory bandwidth", shared, partial(in_fresh_process, _bandwidth, plan.threads))
    ]
    parts += [
        (peer.name, shared, partial(in_fresh_process, _prefixes, peer, dict(texts)))
        for peer in llm_siren
    ]
    for engine, entry in zip(ours, entries, strict=True):
        for what, function in _PARTS:
            run = partial(in_fresh_process, function, engine.bundle, plan)
            parts.append((f"{engine.name}, {what}", entry, run))
        parts.append((f"{engine.name}, memory", entry, partial(_memory, engine.bundle, plan)))
    total = len(parts) + bool(generators)
    peers, failed = {peer.name for peer in llm_siren}, dict[str, str]()
    for number, (what, into, measure) in enumerate(parts):
        progress(what, number, total)
        try:
            into.update(measure())
        except Exception as error:  # whatever a peer's libraries raise
            if what not in peers:
                raise
            failed[what] = reason(error)
    for entry in entries:
        entry.update(shared)
        entry["summary"] = summarise(entry, plan)
    if generators:
        progress("streams and generators in turns", len(parts), total)
        turns = Turns(plan.tokens, plan.turn, plan.walks)
        try:
            seconds, unable = in_fresh_process(measure_turns, ours, generators, turns)
        except SirenError:
            raise  # ours, which is loaded there too
        except Exception as error:  # a library that ends the process, for one
            failed |= dict.fromkeys((one.name for one in generators), reason(error))
        else:
            failed |= unable
            entries += turn_ratios(entries, seconds)
    return entries, failed


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
    for dtype in llm_siren_dtypes(results):
        times = results[f"llm_siren_{dtype}_s"]
        lengths = sorted(int(length) for length in times)
        costs = [median(times[length]) for length in lengths]
        every = np.interp(np.arange(1, plan.tokens + 1), lengths, costs)
        summary[f"{dtype}_every_token_s"] = float(every.sum())
        summary[f"{dtype}_every_chunk_s"] = float(every[plan.chunk - 1 :: plan.chunk].sum())
        for unit, ours in (("token", sum(singles)), ("chunk", sum(chunks))):
            summary[f"{dtype}_every_{unit}_ratio"] = summary[f"{dtype}_every_{unit}_s"] / ours
    return summary


def llm_siren_dtypes(results: Mapping[str, Any]) -> list[str]:
    """The dtypes that llm-siren was timed in."""
    return [dtype for dtype in ("bfloat16", "float32") if f"llm_siren_{dtype}_s" in results]


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
    words = one_token_words((bundle / TOKENIZER_FILE).read_bytes(), plan.tokens)
    with guard.stream() as stream:
        stream.feed("".join(words[:4]))
        stream.reset()
        singles = _timed(stream.feed, words)
        alone = [score.score for score in stream.scores]
        stream.reset()
        starts = range(0, len(words), plan.chunk)
        chunks = _timed(stream.feed, ["".join(words[i : i + plan.chunk]) for i in starts])
        chunked = [score.score for score in stream.scores]
    difference = max(abs(a - b) for a, b in zip(alone, chunked, strict=True))
    return {
        "single_s": singles,
        "chunk_s": chunks,
        "max_score_difference": difference,
        "weight_bytes": step_weight_bytes(bundle / "stream.onnx"),
    }


def _many_streams(bundle: Path, plan: Plan) -> Results:
    guard = Guard.load(bundle, backend="cpu", threads=plan.threads, streaming=True)
    one: list[float] = []
    batch: list[float] = []
    with guard.streams() as streams:
        alone = [streams.open()]
        together = [streams.open() for _ in range(plan.streams)]
        streams.feed([(stream, token_ids(plan.chunk)) for stream in alone + together])
        for step in range(plan.steps):  # interleaved, since the machine may be busy at times
            for group, samples in ((alone, one), (together, batch)):
                pieces = [(stream, [5 + step]) for stream in group]
                samples += _timed(streams.feed, [pieces])
        size = together[0].memory_bytes
    return {"one_step_s": one, "batch_step_s": batch, "bytes_per_stream": size}


def _long_stream(bundle: Path, plan: Plan) -> Results:
    guard = Guard.load(bundle, backend="cpu", threads=plan.threads, streaming=True)
    ids, process = token_ids(plan.long_tokens), psutil.Process()
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


_PARTS: tuple[tuple[str, Callable[[Path, Plan], Results]], ...] = (
    ("single tokens and chunks", _one_stream),
    ("many streams", _many_streams),
    ("a long stream", _long_stream),
)


def _memory(bundle: Path, plan: Plan) -> Results:
    return {"memory_bytes": measure_memory(bundle, plan.threads)}


def _bandwidth(threads: int) -> Results:
    return {"bandwidth_bytes_per_s": memory_bandwidth(threads)}


def _prefixes(engine: LlmSiren, texts: Mapping[int, str]) -> Results:
    scorer = engine.load()
    scorer(texts[min(texts)])
    times = {length: _timed(scorer, [text] * 2) for length, text in texts.items()}
    return {f"llm_siren_{engine.dtype}_s": times}


def _timed(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[float]:
    seconds = []
    for argument in arguments:
        start = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - start)
    return seconds


def _near(samples: Sequence[float], position: int) -> float:
    return median(samples[max(0, position - _NEAR) : position + _NEAR])
