"""`siren bench plan-build`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from siren_bench.making.plan_build import measure_plan_build, plan_build_table
from siren_bench.records.progress import console
from siren_bench.records.record import write_record
from siren_bench.subjects.subject import synthesize
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.backends.tensorrt.build import PlanGraph
from siren_runtime.backends.tensorrt.library import Flavor
from siren_runtime.commands.console import write_lines

from . import options

_GRAPHS: tuple[PlanGraph, ...] = ("score", "stream")


def plan_build(
    shapes: Annotated[list[str], typer.Argument(help=f"Any of {options.SHAPE_NAMES}.")],
    flavor: Annotated[Flavor, typer.Option(help="The library to compile with.")] = "tensorrt-rtx",
    output: options.RecordFile = options.RESULTS / "plan-build.json",
) -> None:
    """Compile float16 bundles of true shapes with random weights: seconds, plan size, peak memory.

    Each is compiled in a fresh process with the default profiles. Needs disk for checkpoint,
    bundle and plans at once: 7 GB for 0.6B.
    """
    results = []
    for shape in [options.shape_of(name) for name in shapes]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            subject = synthesize(shape, folder)
            artifact, checkpoint = load_artifact(subject.head), load_checkpoint(subject.backbone)
            bundle = folder / "bundle"
            with console.status(f"exporting {shape.name}"):
                export_bundle(artifact, checkpoint, bundle, precision="fp16", target=flavor)
            for graph in _GRAPHS:
                with console.status(f"compiling {shape.name}: {graph}"):
                    results.append(measure_plan_build(shape.name, bundle, flavor, graph))
    table = plan_build_table(results)
    write_lines(table)
    write_record(output, "plan-build", {"precision": "fp16"}, results, table)
