"""`siren bench`: measure guards, and make what they are measured on."""

import tempfile
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from siren_export.artifact import load_artifact
from siren_export.checkpoint import load_checkpoint
from siren_export.export import export_bundle
from siren_runtime.errors import InputError
from siren_runtime.manifest import Precision
from siren_runtime.tensorrt.library import Flavor

from .engines import Engine, LlmSiren, SirenEdge
from .export_memory import export_table, measure_export
from .latency import latency_table, measure_latency, rounds_in_all
from .plan_build import measure_plan_build, plan_build_table
from .progress import console, progress_bar
from .record import write_record
from .shapes import SHAPES, Shape
from .stream_command import stream
from .subject import find_subject, synthesize
from .texts import texts_of

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Measure guards against their peers."
)

app.command(epilog="Example: siren bench stream qwen3-0.6b")(stream)

_RESULTS = Path("bench/results")
_SHAPE_NAMES = ", ".join(SHAPES)


@app.command("synthesize", epilog="Example: siren bench synthesize qwen3-0.6b -o random-0.6b")
def synthesize_command(
    shape: Annotated[str, typer.Argument(help=f"One of {_SHAPE_NAMES}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")],
) -> None:
    """Write a checkpoint of a true shape with random weights, and a head for it.

    The backbone lands in OUTPUT/backbone, the head in OUTPUT/head, ready for siren export.
    """
    subject = synthesize(_shape(shape), output)
    console.print(f"{subject.backbone} and {subject.head}: {subject.description}")


@app.command("export-memory", epilog="Example: siren bench export-memory qwen3-0.6b llama-3.1-8b")
def export_memory(
    shapes: Annotated[list[str], typer.Argument(help=f"Any of {_SHAPE_NAMES}.")],
    precision: Annotated[
        str, typer.Option(help=f"One of {', '.join(get_args(Precision))}.")
    ] = "fp16",
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Keep the random checkpoints in this folder, and use those already there. "
            "By default they are written to the system's folder for temporary files."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The JSON file to write.")
    ] = _RESULTS / "export-memory.json",
) -> None:
    """Export random checkpoints of true shapes: peak memory, seconds, sizes.

    Every export runs in a fresh process, whose largest resident memory, file-backed pages
    included, is the peak. Needs disk for the checkpoint and its bundle: 32 GB for 8B.
    """
    chosen = [_shape(name) for name in shapes]
    if precision not in get_args(Precision):
        raise typer.BadParameter(f"{precision!r} is not one of {', '.join(get_args(Precision))}")
    results = []
    for shape in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (keep or Path(scratch)) / shape.name
            head, backbone = folder / "head", folder / "backbone"
            if not head.exists():  # it is written last
                synthesize(shape, folder)
            with console.status(f"exporting {shape.name}"):
                bundle = Path(scratch) / "bundle"
                results.append(
                    measure_export(shape, backbone, head, bundle, cast("Precision", precision))
                )
    table = export_table(results)
    write_record(output, "export-memory", {"precision": precision}, results, table)
    typer.echo(table)


@app.command("plan-build", epilog="Example: siren bench plan-build qwen3-0.6b llama-3.2-1b")
def plan_build(
    shapes: Annotated[list[str], typer.Argument(help=f"Any of {_SHAPE_NAMES}.")],
    flavor: Annotated[Flavor, typer.Option(help="The library to compile with.")] = "tensorrt-rtx",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The JSON file to write.")
    ] = _RESULTS / "plan-build.json",
) -> None:
    """Compile float16 bundles of true shapes with random weights: seconds, plan size, peak memory.

    Each is compiled in a fresh process with the default profiles. Needs disk for checkpoint,
    bundle and plan at once: 6 GB for 0.6B.
    """
    results = []
    for shape in [_shape(name) for name in shapes]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            subject = synthesize(shape, folder)
            artifact, checkpoint = load_artifact(subject.head), load_checkpoint(subject.backbone)
            bundle = folder / "bundle"
            with console.status(f"exporting {shape.name}"):
                export_bundle(artifact, checkpoint, bundle, precision="fp16", target=flavor)
            with console.status(f"compiling {shape.name}"):
                results.append(measure_plan_build(shape.name, bundle, flavor))
    table = plan_build_table(results)
    write_record(output, "plan-build", {"precision": "fp16"}, results, table)
    typer.echo(table)


@app.command(epilog="Example: siren bench latency minilm --tokens 8,32,128")
def latency(
    head: Annotated[
        str,
        typer.Argument(
            help="A shipped guard (minilm), a head's folder, or a shape to fill with random "
            f"weights ({_SHAPE_NAMES})."
        ),
    ],
    backbone: Annotated[
        Path | None, typer.Option(help="The backbone's folder, in place of the head's own.")
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="Lengths in tokens, special tokens included.")
    ] = "8,32,128,512",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each engine and length.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine.")] = 2,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The JSON file to write. [default: bench/results/latency-HEAD]"
        ),
    ] = None,
) -> None:
    """Time one text at a time: our float32 bundle against llm-siren in float32 and bfloat16.

    Each engine has a process of its own; every round times each of them once, and the ratio is
    the median over rounds.
    """
    lengths = _lengths(tokens)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        subject = find_subject(head, scratch, backbone)
        artifact, checkpoint = load_artifact(subject.head), load_checkpoint(subject.backbone)
        if lengths[-1] > artifact.max_length:
            raise InputError(
                f"--tokens {lengths[-1]} is more than the head's max_length {artifact.max_length}"
            )
        texts = texts_of(checkpoint.tokenizer_json, lengths)
        bundle = scratch / "bundle"
        with console.status("exporting"):
            export_bundle(artifact, checkpoint, bundle)
        engines: list[Engine] = [
            SirenEdge(bundle, "float32", threads),
            LlmSiren(subject.head, "float32", threads),
            LlmSiren(subject.head, "bfloat16", threads),
        ]
        with progress_bar("timing", rounds_in_all(texts, rounds)) as advance:
            results = measure_latency(engines, texts, rounds, lambda: advance(1))
    settings = {"head": subject.description, "rounds": rounds, "threads": threads, "batch": 1}
    table = latency_table(results)
    output = output or _RESULTS / f"latency-{Path(head).name}.json"
    write_record(output, "latency", settings, results, table)
    typer.echo(table)


def _shape(name: str) -> Shape:
    if name not in SHAPES:
        raise typer.BadParameter(f"{name!r} is not one of {_SHAPE_NAMES}")
    return SHAPES[name]


def _lengths(tokens: str) -> list[int]:
    try:
        lengths = sorted({int(length) for length in tokens.split(",")})
    except ValueError:
        raise typer.BadParameter(f"--tokens must be like 8,32,128, found {tokens!r}") from None
    if lengths[0] < 1:
        raise typer.BadParameter(f"--tokens must be from 1, found {lengths[0]}")
    return lengths
