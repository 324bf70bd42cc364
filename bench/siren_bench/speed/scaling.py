"""How cost grows with tokens, batch, threads and model size: samples and fitted exponents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from siren_bench.engines.engine import Engine
from siren_bench.engines.process import EngineProcess
from siren_bench.records.record import markdown_table
from siren_bench.records.samples import engines_in_turns

from .latency import milliseconds

AXES = {
    "tokens": "tokens of one text",
    "batch": "texts in one call",
    "threads": "threads",
    "parameters": "matrix parameters of the blocks",
}
TEXT_TOKENS = 32  # of a text where tokens are not what is scaled


@dataclass(frozen=True)
class Point:
    """What is scored in one call, and where it lies on which of the AXES."""

    axis: str
    value: int
    texts: list[str]


def along_tokens_and_batch(
    texts: Mapping[int, str], lengths: Sequence[int], batches: Sequence[int]
) -> list[Point]:
    """List the points along tokens, one text a call, and along batch, equal texts."""
    points = [Point("tokens", length, [texts[length]]) for length in lengths]
    return points + [Point("batch", batch, [texts[TEXT_TOKENS]] * batch) for batch in batches]


def measure_points(
    engines: Sequence[tuple[Engine, EngineProcess]], points: Sequence[Point], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Time every engine at every point, interleaved; one entry for each of them.

    Generative guards take one text at a time, so they have no points along batch beyond 1.

    Args:
        engines: The first, which may not fail, is one of ours.

    Returns:
        The entries, raw samples in them; and for each engine that failed at a point, but for the
        first, why. It has entries for the points before.

    Raises:
        Exception: the first engine fails.
    """
    results = []
    failed: dict[str, str] = {}
    for point in points:
        able = [
            (e, p)
            for e, p in engines
            if e.name not in failed and (len(point.texts) == 1 or not e.work.new_tokens)
        ]
        samples, broken = engines_in_turns([partial(_time, *one, point) for one in able], rounds)
        for i, why in broken.items():
            failed[able[i][0].name] = f"{point.axis} {point.value:,}: {why}"
        results += [
            {
                "axis": point.axis,
                "value": point.value,
                "engine": engine.name,
                "median_s": median(times),
                "samples_s": times,
            }
            for i, ((engine, _), times) in enumerate(zip(able, samples, strict=True))
            if i not in broken
        ]
    return results, failed


def _time(engine: Engine, process: EngineProcess, point: Point, _: int) -> float:
    """Seconds of one call with the texts of `point`."""
    if len(point.texts) == 1:
        return process.score(engine, point.texts[0])[0]
    return process.score_batches(engine, [point.texts])[0]


def fit_exponent(values: Sequence[float], seconds: Sequence[float]) -> dict[str, float] | None:
    """Fit seconds = c * value ** exponent by least squares of the logarithms.

    Returns:
        The exponent, c (seconds), and r2, the share of the variance of log(seconds) explained;
        None for fewer than two different values.
    """
    if len(set(values)) < 2:
        return None
    x, y = np.log(values), np.log(seconds)
    exponent, offset = np.polyfit(x, y, 1)
    residual = np.sum((y - offset - exponent * x) ** 2)
    spread = np.sum((y - y.mean()) ** 2)
    r2 = 1.0 - residual / spread if spread > 0 else 1.0
    return {"exponent": float(exponent), "c_s": float(np.exp(offset)), "r2": float(r2)}


def fits(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fit each engine on each axis, over its medians."""
    found = []
    for axis, name in dict.fromkeys((entry["axis"], entry["engine"]) for entry in results):
        entries = [e for e in results if (e["axis"], e["engine"]) == (axis, name)]
        fit = fit_exponent([e["value"] for e in entries], [e["median_s"] for e in entries])
        if fit:
            found.append({"axis": axis, "engine": name, **fit})
    return found


def scaling_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out milliseconds at each value of each axis, with the fitted exponent."""
    fitted = {(fit["axis"], fit["engine"]): fit for fit in fits(results)}
    rows = []
    for axis, name in dict.fromkeys((entry["axis"], entry["engine"]) for entry in results):
        entries = [e for e in results if (e["axis"], e["engine"]) == (axis, name)]
        cells = [f"{_number(e['value'])}: {milliseconds(e['median_s'])}" for e in entries]
        fit = fitted.get((axis, name))
        if fit:  # through two points every line fits
            how_well = f"r2 {fit['r2']:.3f}" if len(entries) > 2 else "of two points"
            exponent = f"{fit['exponent']:.2f} ({how_well})"
        else:
            exponent = ""
        rows.append([AXES[axis], name, ", ".join(cells), exponent])
    return markdown_table(["axis", "engine", "value: ms", "exponent"], rows)


def _number(value: float) -> str:
    return f"{value / 1e6:,.0f}M" if value >= 1e6 else f"{value:,}"
