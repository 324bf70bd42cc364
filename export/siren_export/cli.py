"""`siren export`: compile a head and its backbone into a bundle."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from siren_runtime.errors import InputError
from siren_runtime.manifest import Manifest, Precision

from .artifact import load_artifact
from .bundle_writer import check_output
from .checkpoint import load_checkpoint
from .export import Stage, export_bundle
from .recipes import find_recipe, recipe_names
from .verify import LlmSiren, Reference, ReferenceUnavailable, read_reference, write_reference

app = typer.Typer()

_EPILOG = """
Examples:

siren export minilm

siren export UofTCSSLab/SIREN-Qwen3-0.6B -o guards/qwen3 --precision fp16

siren export ./my-head --backbone ./my-backbone -o guards/mine
"""
_STAGES: dict[Stage, str] = {
    "write": "writing weights",
    "reference": "scoring with llm-siren",
    "verify": "scoring with the bundle",
}


@app.command(epilog=_EPILOG)
def export(
    head: Annotated[
        str,
        typer.Argument(
            help="A SIREN artifact: a folder with siren_config.json and siren.safetensors, a hub "
            "repo id, or the name of a shipped guard (minilm)."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The bundle folder to make. [default: engines/NAME/bundle]"
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="The backbone's folder or repo id, instead of the artifact's own."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help=f"One of {', '.join(get_args(Precision))}.")
    ] = "fp32",
    stream: Annotated[
        bool, typer.Option(help="Also write the streaming graph, for decoder backbones.")
    ] = True,
    verify: Annotated[
        bool, typer.Option(help="Compare scores with llm-siren in float32 on built-in texts.")
    ] = True,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Keep a bundle whose scores miss the bound.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is at the output.")
    ] = False,
    record_reference: Annotated[
        Path | None,
        typer.Option(help="Also write llm-siren's scores here, for machines without torch."),
    ] = None,
) -> None:
    """Compile a SIREN head and its backbone into a guard bundle.

    The graph holds the backbone up to the deepest block that the head reads, pooling and head;
    weights are streamed, so a large backbone needs little memory. With the reference extra
    installed, the bundle's scores are compared with llm-siren's, and the report kept in it.
    """
    if precision not in get_args(Precision):
        raise typer.BadParameter(f"{precision!r} is not one of {', '.join(get_args(Precision))}")
    recipe = find_recipe(head)
    if output is None:
        if recipe is None:
            raise typer.BadParameter("--output is needed for a head that is not a shipped one")
        output = recipe.bundle
    check_output(output, overwrite=overwrite)

    started = time.perf_counter()
    artifact = load_artifact(_existing(str(recipe.artifact) if recipe else head))
    source = backbone or (str(recipe.backbone()) if recipe else artifact.model_id)
    checkpoint = load_checkpoint(source, revision=None if backbone else artifact.model_revision)

    def reference(advance: Callable[[int, int], None]) -> Reference:
        try:
            scores = LlmSiren(artifact, checkpoint).scores(advance)
        except ReferenceUnavailable:
            if recipe is None or record_reference is not None:
                raise
            return read_reference(recipe.reference, artifact)
        if record_reference is not None:
            write_reference(record_reference, scores)
        return scores

    with _Bars() as bars:
        manifest = export_bundle(
            artifact,
            checkpoint,
            output,
            precision=cast("Precision", precision),
            stream=stream,
            reference=reference if verify else None,
            allow_drift=allow_drift,
            overwrite=overwrite,
            progress=bars.update,
        )
    _summary(output, manifest, time.perf_counter() - started)


def _existing(head: str) -> str:
    """Say what the names are, where a mistyped one would be taken for a folder."""
    if "/" not in head and not Path(head).exists():
        raise InputError(
            f"{head!r} is neither a folder, nor a repo id (org/name), nor a shipped guard "
            f"({', '.join(recipe_names()) or 'none beside this installation'})"
        )
    return head


class _Bars:
    """A progress bar a stage, on standard error."""

    def __enter__(self) -> "_Bars":
        console = Console(stderr=True)
        text = TextColumn("{task.description:<24}")
        self._bytes = Progress(
            text, BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console
        )
        self._texts = Progress(
            text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self._tasks: dict[Stage, TaskID] = {}
        return self

    def update(self, stage: Stage, done: int, total: int) -> None:
        bar = self._bytes if stage == "write" else self._texts
        if stage not in self._tasks:
            for other in (self._bytes, self._texts):
                other.stop()
            bar.start()
            self._tasks[stage] = bar.add_task(_STAGES[stage], total=total)
        bar.update(self._tasks[stage], completed=done)

    def __exit__(self, *exc: object) -> None:
        self._bytes.stop()
        self._texts.stop()


def _summary(output: Path, manifest: Manifest, seconds: float) -> None:
    console = Console(stderr=True, highlight=False)
    size = sum(file.size for file in manifest.files.values()) / 1e6
    backbone, report = manifest.backbone, manifest.verification
    console.print(
        f"{output}: {manifest.precision}, {backbone.blocks_kept} of {backbone.blocks} blocks, "
        f"{size:,.1f} MB in {seconds:.1f} s"
    )
    if report.status == "unverified":
        console.print(f"[yellow]unverified[/]: {report.reason}")
    else:
        console.print(
            f"{report.status}: |score difference| at most {report.max_difference:.1e}, mean "
            f"{report.mean_difference:.1e}, verdicts equal {report.verdict_agreement:.1%}, over "
            f"{report.texts} texts against {report.reference}"
        )
