"""`siren build`: compile a bundle into a TensorRT plan on the machine that will run it."""

import time
from functools import partial
from typing import Annotated

import typer
from rich.filesize import decimal

from siren_runtime.backends.shapes import parse_profile
from siren_runtime.backends.tensorrt.build import PlanGraph, build_plan
from siren_runtime.backends.tensorrt.library import Flavor, LogLevel, load_library
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.shipped import find_bundle

from .bars import Bars
from .console import report

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EPILOG = """
Examples:

siren build guards/qwen3 --flavor tensorrt-rtx

siren build guards/qwen3 --flavor tensorrt --profile 1x1:1x64:1x512 --workspace 2

siren build guards/qwen3 --flavor tensorrt --stream-profile 1x1x1:1x1x1024:1x64x8192
"""


@app.command(epilog=_EPILOG)
def build(
    bundle: Annotated[
        str,
        typer.Argument(
            help="Folder of a bundle, a shipped guard's name (minilm), or a hub repository id."
        ),
    ],
    flavor: Annotated[
        Flavor, typer.Option(help="The library to compile with, which must run the plan too.")
    ],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Shapes as min:opt:max, each BATCHxLENGTH; may be given several times. Default: "
            "batch 1, and batch 1 to 32, both up to max_length."
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option(help="Also compile the streaming graph, where the bundle has one.")
    ] = True,
    stream_profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Shapes of streams as min:opt:max, each BATCHxCHUNKxPAST, in tokens; may be given "
            "several times; the largest PAST must be 8 or more. Default: 1 stream, and 1 to 8, in "
            "chunks of 1 to 256 after up to 2048 tokens (or max_length)."
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="GPUs to compile for, such as 8.6; tensorrt-rtx only. Default: its portable range."
        ),
    ] = None,
    workspace: Annotated[
        float | None, typer.Option(min=0.001, max=1 << 20, help="GPU memory a layer may use, GiB.")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Of the library's own messages.")] = "error",
) -> None:
    """Compile a bundle's graphs into plans under its plans/ folder: score.onnx, and for decoders
    stream.onnx with head.onnx, without which a stream is read anew at each feed.

    tensorrt compiles for the GPU of this machine; tensorrt-rtx needs no GPU. A plan runs with
    the very version of the library that compiled it.
    """
    library = load_library(flavor)
    opened = load_bundle(find_bundle(bundle), verify="full")
    shapes: dict[PlanGraph, list[str]] = {"score": profile or []}
    if stream and opened.manifest.streams:
        shapes |= {"stream": stream_profile or [], "head": []}
    for graph, texts in shapes.items():
        started = time.perf_counter()
        with Bars() as bars:
            plan = build_plan(
                opened,
                library,
                graph,
                profiles=[parse_profile(text) for text in texts],
                workspace_bytes=None if workspace is None else int(workspace * (1 << 30)),
                compute_capabilities=compute_capability or (),
                log_level=log_level,
                log=bars.say,
                progress=partial(_show, bars, graph),
            )
        record = plan.record
        targets = f"compute capability {', '.join(record.compute_capabilities)}"
        if not record.compute_capabilities:
            targets = "its default range of GPUs"
        report(
            f"{plan.path}: {decimal(record.size)} in {time.perf_counter() - started:.1f} s; "
            f"{flavor} {library.version}, for {targets}, "
            f"profiles {', '.join(map(str, record.profiles))}"
        )


def _show(bars: Bars, graph: str, phase: str, done: int, total: int) -> None:
    """Show how far one of the outermost phases that TensorRT reports is."""
    bars.update(f"{graph}: {phase}", done, total)
