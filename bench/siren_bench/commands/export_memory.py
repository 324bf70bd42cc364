"""`siren bench export-memory`."""

import tempfile
from pathlib import Path
from typing import Annotated, cast

import typer

from siren_bench.making.export_memory import export_table, measure_export
from siren_bench.records.progress import console
from siren_bench.records.record import write_record
from siren_bench.subjects.subject import synthesize
from siren_bench.subjects.synthetic_gguf import write_synthetic_gguf
from siren_runtime.bundle.types import Precision
from siren_runtime.commands.console import write_lines

from . import options


def export_memory(
    shapes: Annotated[list[str], typer.Argument(help=f"Any of {options.SHAPE_NAMES}.")],
    precision: Annotated[
        str, typer.Option(help=f"One of {', '.join(options.PRECISIONS)}.")
    ] = "fp16",
    gguf: Annotated[
        bool, typer.Option("--gguf", help="The checkpoint is a GGUF file in Q4_K; Qwen3 only.")
    ] = False,
    keep: options.Keep = None,
    output: options.RecordFile = options.RESULTS / "export-memory.json",
) -> None:
    """Export random checkpoints of true shapes: peak memory, seconds, sizes.

    Every export runs in a fresh process, whose largest resident memory, file-backed pages
    included, is the peak. Needs disk for the checkpoint and its bundle: 32 GB for 8B.
    """
    chosen = [options.shape_of(name) for name in shapes]
    (wanted,) = options.precisions_of(precision)
    results = []
    for shape in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (keep or Path(scratch)) / shape.name
            if gguf:
                backbone, head = write_synthetic_gguf(shape, folder)
            else:
                subject = synthesize(shape, folder)
                backbone, head = subject.backbone, subject.head
            with console.status(f"exporting {shape.name}"):
                bundle = Path(scratch) / "bundle"
                entry = measure_export(shape, backbone, head, bundle, cast("Precision", wanted))
                results.append(entry)
    table = export_table(results)
    write_lines(table)
    settings = {"precision": wanted, "gguf": gguf}
    write_record(output, "export-memory", settings, results, table)
