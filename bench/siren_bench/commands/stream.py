"""`siren bench stream`."""

import tempfile
from pathlib import Path
from typing import Annotated, cast

import typer

from siren_bench.engines import TorchDtype
from siren_bench.progress import console, progress_bar
from siren_bench.record import write_record
from siren_bench.shapes import SHAPES
from siren_bench.stream import PEERS, Plan, measure_stream, stream_table
from siren_bench.stream_plot import plot_long_stream
from siren_bench.subject import Subject, find_subject
from siren_bench.texts import texts_of
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import InputError

from . import options

_DEFAULTS = Plan()


def stream(
    head: Annotated[
        str,
        typer.Argument(
            help=f"A head's folder, or a shape to fill with random weights ({', '.join(SHAPES)})."
        ),
    ],
    backbone: Annotated[
        Path | None, typer.Option(help="The backbone's folder, in place of the head's own.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help=f"One of {', '.join(options.PRECISIONS)}.")
    ] = "fp32",
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle of this head, in place of exporting one.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=32, help="Of the stream.")] = _DEFAULTS.tokens,
    long_tokens: Annotated[
        int, typer.Option(min=32, help="Of the long stream.")
    ] = _DEFAULTS.long_tokens,
    peers: Annotated[
        str, typer.Option(help=f"Of llm-siren, any of {', '.join(PEERS)}; empty for none.")
    ] = ",".join(PEERS),
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine.")] = 2,
    output: options.Output = None,
) -> None:
    """Time streams of a decoder guard against llm-siren's score_streaming.

    A token alone and in chunks, early and late, many streams in a batch, and a long stream, whose
    time and memory are also drawn. llm-siren is timed at a few prefixes and extrapolated.
    """
    if precision not in options.PRECISIONS:
        raise typer.BadParameter(f"{precision!r} is not one of {', '.join(options.PRECISIONS)}")
    plan = Plan(
        threads=threads,
        tokens=tokens,
        late=min(_DEFAULTS.late, tokens - 12),
        sampled=(*(n for n in _DEFAULTS.sampled if n < tokens), tokens),
        long_tokens=long_tokens,
        peers=_dtypes(peers),
    )
    output = output or Path(f"bench/results/stream-{Path(head).name}-{precision}.json")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        subject = find_subject(head, scratch, backbone)
        checkpoint = load_checkpoint(subject.backbone)
        texts = texts_of(checkpoint.tokenizer_json, plan.sampled)
        bundle = bundle or _export(subject, checkpoint, scratch / "bundle", precision, head)
        with progress_bar() as progress:
            results = measure_stream(bundle, subject.head, texts, plan, progress)
    settings = {"head": subject.description, "precision": precision, "plan": vars(plan)}
    table = stream_table(results["summary"], plan)
    typer.echo(table)
    write_record(output, "stream", settings, [results], table)
    plot_long_stream(
        results["long"], f"{subject.description}, {precision}", output.with_suffix(".png")
    )


def _dtypes(peers: str) -> tuple[TorchDtype, ...]:
    """Read --peers: the dtypes of llm-siren, each known."""
    names = [name.strip() for name in peers.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(PEERS)}")
    return tuple(cast("TorchDtype", name) for name in dict.fromkeys(names))


def _export(
    subject: Subject, checkpoint: Checkpoint, folder: Path, precision: str, head: str
) -> Path:
    """Export the head that is called `head`, which must be a decoder's."""
    with console.status("exporting"):
        manifest = export_bundle(
            load_artifact(subject.head), checkpoint, folder, precision=cast("Precision", precision)
        )
    if "stream" not in manifest.graphs:
        raise InputError(f"{head}: not a decoder, so there is no streaming graph to time")
    return folder
