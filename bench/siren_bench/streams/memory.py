"""What a guard that streams holds in memory, against one that only scores."""

from pathlib import Path

from siren_bench.engines.process import in_fresh_process, peak_memory, resident_memory
from siren_runtime import Guard

_TEXT = "The ferry leaves the harbour at seven."


def measure_memory(bundle: Path, threads: int) -> dict[str, int]:
    """Measure resident memory in bytes, each guard in a fresh process.

    Returns:
        `scoring`, after a score by the whole-sequence graph; `switched`, of the same guard after
        its first stream; `switching_peak`, the most on the way there; `streaming`, of a guard
        that was loaded to stream, after a stream and a score.
    """
    return {
        **in_fresh_process(_switching, bundle, threads),
        **in_fresh_process(_streaming, bundle, threads),
    }


def _switching(bundle: Path, threads: int) -> dict[str, int]:
    guard = Guard.load(bundle, backend="cpu", threads=threads)
    guard.score(_TEXT)
    scoring = resident_memory()
    with guard.stream() as stream:
        stream.feed(_TEXT)
    guard.score(_TEXT)
    return {
        "scoring": scoring,
        "switched": resident_memory(),
        "switching_peak": peak_memory(),
    }


def _streaming(bundle: Path, threads: int) -> dict[str, int]:
    guard = Guard.load(bundle, backend="cpu", threads=threads, streaming=True)
    with guard.stream() as stream:
        stream.feed(_TEXT)
    guard.score(_TEXT)
    return {"streaming": resident_memory()}
