"""Cold starts and memory: an engine in a fresh process, from nothing to its first scores."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from siren_bench.engines.engine import Engine
from siren_bench.records.record import markdown_table
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import SirenError

_COLD = "siren_bench.speed.cold_process"


def start_cold(engine: Engine, texts: Sequence[str]) -> dict[str, Any]:
    """Start a Python process that loads an engine and scores each text once.

    The files have been read before, so they come from the system's page cache.

    Returns:
        Seconds of loading (imports included), of the first score, and from the start of the
        process to the first score; resident memory after each score and its peak, in bytes, of
        the process and its children.

    Raises:
        SirenError: the process failed.
    """
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", _COLD],
        input=pickle.dumps((engine, list(texts))),
        capture_output=True,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise SirenError(f"{engine.name} did not start: {lines[-1] if lines else '?'}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"start_to_score_s": answer.pop("ready_at") - start, **answer}


def measure_cold_starts(
    engines: Sequence[Engine],
    text: str,
    rounds: int,
    progress: Progress = silent,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Start every engine once in each round, to its first score of `text`.

    Returns:
        One entry an engine, with the samples and their medians; and for each engine that does
        not start why not.
    """
    samples: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    done = 0
    for round_number in range(-1, rounds):  # the first brings the files into the page cache
        for engine in engines:
            if engine.name not in failed:
                try:
                    sample = start_cold(engine, [text])
                except SirenError as error:
                    failed[engine.name] = str(error)
                else:
                    if round_number >= 0:
                        samples.setdefault(engine.name, []).append(sample)
            done += 1
            progress("starting", done, (rounds + 1) * len(engines))
    keys = ("load_s", "first_score_s", "start_to_score_s")
    results = [
        {"engine": name, **{key: median(s[key] for s in starts) for key in keys}, "samples": starts}
        for name, starts in samples.items()
    ]
    return results, failed


def measure_memory(
    engines: Sequence[Engine],
    texts: Mapping[int, str],
    rounds: int,
    progress: Progress = silent,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure what each engine holds after scoring texts of rising length, in fresh processes.

    Returns:
        One entry an engine and length, with the bytes of every process and their medians; and
        for each engine that does not start why not.
    """
    results: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for number, engine in enumerate(engines):
        starts = []
        for round_number in range(rounds):
            if engine.name not in failed:
                try:
                    starts.append(start_cold(engine, list(texts.values())))
                except SirenError as error:
                    failed[engine.name] = str(error)
            progress("measuring", number * rounds + round_number + 1, rounds * len(engines))
        if engine.name in failed:
            continue
        peaks = [start["peak_bytes"] for start in starts]
        for nth, tokens in enumerate(texts):
            resident = [start["resident_bytes"][nth] for start in starts]
            results.append(
                {
                    "engine": engine.name,
                    "tokens": tokens,
                    "resident_bytes": median(resident),
                    "peak_bytes": median(peaks),
                    "resident_samples_bytes": resident,
                    "peak_samples_bytes": peaks,
                }
            )
    return results, failed


def load_and_score_seconds(entry: Mapping[str, Any]) -> float:
    """Return the median over an entry's starts of loading and the first score together."""
    return float(median(start["load_s"] + start["first_score_s"] for start in entry["samples"]))


def cold_start_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out median seconds of a cold start."""
    header = ["seconds", "load", "first score", "both", "from process start"]
    rows = [
        [
            entry["engine"],
            f"{entry['load_s']:.2f}",
            f"{entry['first_score_s']:.2f}",
            f"{load_and_score_seconds(entry):.2f}",
            f"{entry['start_to_score_s']:.2f}",
        ]
        for entry in results
    ]
    return markdown_table(header, rows)


def memory_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out resident memory in GB (10^9 bytes) after a text of each length, and the peak."""
    lengths = list(dict.fromkeys(entry["tokens"] for entry in results))
    header = ["resident, GB", *(f"{n} tokens" for n in lengths), "peak"]
    rows = []
    for name in dict.fromkeys(entry["engine"] for entry in results):
        entries = [entry for entry in results if entry["engine"] == name]
        cells = [f"{entry['resident_bytes'] / 1e9:.2f}" for entry in entries]
        rows.append([name, *cells, f"{entries[0]['peak_bytes'] / 1e9:.2f}"])
    return markdown_table(header, rows)
