"""Peak memory and time of an export, in a process of its own."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siren_bench.engines.process import in_fresh_process, peak_memory
from siren_bench.records.record import markdown_table
from siren_bench.subjects.shapes import Shape
from siren_runtime.bundle.types import Precision


def measure_export(
    shape: Shape, backbone: Path, head: Path, bundle: Path, precision: Precision
) -> dict[str, Any]:
    """Export a head and its backbone to `bundle` in a fresh process.

    Returns:
        The shape's name, seconds, peak resident memory, and the sizes of the checkpoint, of its
        largest tensor in float32, and of the bundle, in bytes. No verification is in them.
    """
    seconds, peak = in_fresh_process(_export, backbone, head, bundle, precision)
    return {
        "shape": shape.name,
        "precision": precision,
        "seconds": seconds,
        "peak_bytes": peak,
        "checkpoint_bytes": _folder_bytes(backbone.parent if backbone.is_file() else backbone),
        "bundle_bytes": _folder_bytes(bundle),
    }


def export_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out sizes, peak memory in GB (10^9 bytes) and seconds of each shape."""
    header = ["shape", "precision", "checkpoint, GB", "bundle, GB", "peak memory, GB", "seconds"]
    rows = [
        [
            result["shape"],
            result["precision"],
            *(
                f"{result[key] / 1e9:.2f}"
                for key in ("checkpoint_bytes", "bundle_bytes", "peak_bytes")
            ),
            f"{result['seconds']:.1f}",
        ]
        for result in results
    ]
    return markdown_table(header, rows)


def _export(backbone: Path, head: Path, bundle: Path, precision: Precision) -> tuple[float, int]:
    start = time.perf_counter()
    from siren_export.export import export_bundle
    from siren_export.heads.registry import load_artifact
    from siren_export.sources.checkpoint import load_checkpoint

    artifact, checkpoint = load_artifact(str(head)), load_checkpoint(str(backbone))
    export_bundle(artifact, checkpoint, bundle, precision=precision)
    return time.perf_counter() - start, peak_memory()


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
