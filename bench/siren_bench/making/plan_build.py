"""Seconds, plan size and peak memory of compiling a bundle, in a process of its own."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siren_bench.engines.process import in_fresh_process, peak_memory
from siren_bench.records.record import markdown_table
from siren_runtime.backends.tensorrt.build import PlanGraph
from siren_runtime.backends.tensorrt.library import Flavor


def measure_plan_build(name: str, bundle: Path, flavor: Flavor, graph: PlanGraph) -> dict[str, Any]:
    """Compile a graph of `bundle` with its default profiles in a fresh process.

    Returns:
        The name, the graph, the library and its version, seconds, peak resident memory, and the
        sizes of the bundle's weights and of the plan, in bytes.
    """
    return {"shape": name, "graph": graph, **in_fresh_process(_build, bundle, flavor, graph)}


def plan_build_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out sizes, peak memory in GB (10^9 bytes) and seconds of each plan."""
    header = ["shape", "graph", "library", "weights, GB", "plan, GB", "peak memory, GB", "seconds"]
    rows = [
        [
            result["shape"],
            result["graph"],
            f"{result['flavor']} {result['version']}",
            *(f"{result[key] / 1e9:.2f}" for key in ("weights_bytes", "plan_bytes", "peak_bytes")),
            f"{result['seconds']:.1f}",
        ]
        for result in results
    ]
    return markdown_table(header, rows)


def _build(bundle: Path, flavor: Flavor, graph: PlanGraph) -> dict[str, Any]:
    from siren_runtime.backends.tensorrt.build import build_plan
    from siren_runtime.backends.tensorrt.library import load_library
    from siren_runtime.bundle.reader import load_bundle

    library, opened = load_library(flavor), load_bundle(bundle)
    start = time.perf_counter()
    plan = build_plan(opened, library, graph)
    return {
        "flavor": flavor,
        "version": library.version,
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_memory(),
        "weights_bytes": opened.manifest.files["weights.bin"].size,
        "plan_bytes": plan.record.size,
        "profiles": [str(profile) for profile in plan.record.profiles],
    }
