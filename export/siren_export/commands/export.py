"""`siren export`: compile a head and its backbone into a bundle."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import progress as rich_progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from siren_export.bundle_writer import check_output
from siren_export.export import export_bundle
from siren_export.heads.base import Artifact
from siren_export.heads.exits import parse_depths, with_exits
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.passes.calibration import read_calibration
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.recipes import find_recipe, recipe_names
from siren_export.tune.tune import DEFAULT_BUDGET, kept_candidate, tune
from siren_export.verify.reference import (
    LlmSiren,
    Reference,
    ReferenceUnavailable,
    read_reference,
    write_reference,
)
from siren_export.verify.texts import TEXTS
from siren_runtime.bundle.heads import HEAD_NAME, PRIMARY_HEAD
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.progress import Progress
from siren_runtime.bundle.report import Candidate
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import InputError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EPILOG = """
Examples:

siren export minilm

siren export UofTCSSLab/SIREN-Qwen3-0.6B -o guards/qwen3 --precision fp16

siren export ./my-head --backbone ./my-backbone -o guards/mine

siren export ./my-head --backbone SmolLM2-135M-Instruct.Q4_1.gguf -o guards/smollm2

siren export ./my-head categories=./my-labels -o guards/both

siren export ./my-head --exits 2,4 -o guards/quick

siren export minilm --precision auto --budget 0.01 --calibration chats.jsonl
"""
_STAGES = {
    "write": "writing weights",
    "compare": "comparing scores",
    "time": "timing",
    "probe": "quantizing layer by layer",
    "reference": "scoring with llm-siren",
    "verify": "scoring with the bundle",
}


@app.command(epilog=_EPILOG)
def export(
    heads: Annotated[
        list[str],
        typer.Argument(
            metavar="HEAD...",
            help="A SIREN artifact: a folder with siren_config.json and siren.safetensors, a hub "
            "repo id, or the name of a shipped guard (minilm). Several are read from one pass of "
            "the backbone; NAME=HEAD names one, else the first is named harm and the others by "
            "their folders. The first is the guard's score.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The bundle folder to make. [default for a shipped guard: engines/NAME/bundle in "
            "a checkout, else ./NAME]",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="The backbone's folder, repo id or GGUF file, instead of the artifact's own."
        ),
    ] = None,
    precision: Annotated[
        Literal[Precision, "auto"],
        typer.Option(
            help="Of weights and matrix products; bf16 and fp8 are for TensorRT targets, int4 is "
            "not for tensorrt and tensorrt10. auto measures float32, int8, int4 (and float16 on "
            "Arm), the latter also with their most sensitive layers in float32, and keeps the "
            "fastest within --budget; for onnxruntime on a CPU."
        ),
    ] = "fp32",
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="For auto: the mean |score difference| to float32, and the share of texts whose "
            f"verdict changes, may each be this at most. [default: {DEFAULT_BUDGET}]",
        ),
    ] = None,
    target: Annotated[
        Target,
        typer.Option(
            help="What runs or compiles the graph; tensorrt10 is any TensorRT 10, "
            "JetPack's included. ONNX Runtime runs the graphs of all of them."
        ),
    ] = "onnxruntime",
    exits: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCKS,...",
            help="Cut the graph behind so many blocks, where heads that siren train --exits made "
            "may decide on clear texts, once siren calibrate --cascade has chosen when.",
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option(help="Also write the streaming graph, for decoder backbones.")
    ] = True,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Example texts, plain or JSON lines as siren score reads them, by default "
            "built-in ones: int8, int4 and fp8 are fitted to them; auto measures on them."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Compare scores with llm-siren in float32 on built-in texts.")
    ] = True,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Keep a bundle whose scores miss the bound.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Take a backbone that names code of its own (auto_map), which llm-siren runs when "
            "the bundle is verified. The bundle holds none of it.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is at the output.")
    ] = False,
    record_reference: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Also write llm-siren's scores here, for machines without torch."
        ),
    ] = None,
) -> None:
    """Compile SIREN heads and their backbone into a guard bundle.

    The graph holds the backbone up to the deepest block that a head reads, pooling and heads;
    weights are streamed, so a large backbone needs little memory. With the reference extra
    installed, the bundle's scores are compared with llm-siren's, and the report kept in it.
    """
    named = _named(heads)
    recipe = find_recipe(next(iter(named.values())))
    if output is None:
        if recipe is None:
            raise typer.BadParameter("--output is needed for a head that is not a shipped one")
        output = recipe.bundle
    if precision == "auto" and target != "onnxruntime":
        raise typer.BadParameter(
            "--precision auto measures on ONNX Runtime's CPU provider, so it is for --target "
            f"onnxruntime; give {target} a precision"
        )
    if budget is not None and precision != "auto":
        raise typer.BadParameter("--budget is for --precision auto")
    if record_reference is not None:
        if not verify:
            raise typer.BadParameter("--record-reference needs the scores that --no-verify omits")
        if not os.access(record_reference.absolute().parent, os.W_OK):
            raise typer.BadParameter(
                f"--record-reference {record_reference}: there is no such folder, or it cannot be "
                "written"
            )
    check_output(output, overwrite=overwrite)

    started = time.perf_counter()
    artifact = together(
        {name: load_artifact(_existing(_artifact_of(head))) for name, head in named.items()}
    )
    if exits is not None:
        artifact = with_exits(artifact, parse_depths(exits))
    if backbone is None:
        _check_one_backbone(artifact)
    source = backbone or (str(recipe.backbone()) if recipe else artifact.model_id)
    checkpoint = load_checkpoint(
        source,
        revision=None if backbone else artifact.model_revision,
        trust_remote_code=trust_remote_code,
    )

    def reference(progress: Progress) -> Reference:
        try:
            scores = LlmSiren(artifact, checkpoint).scores(progress)
        except ReferenceUnavailable:
            if recipe is None or record_reference is not None:
                raise
            return read_reference(recipe.reference, artifact)
        if record_reference is not None:
            write_reference(record_reference, scores)
        return scores

    examples = read_calibration(calibration) if calibration else []
    with _Bars() as bars:
        tuning, keep_float = None, frozenset[str]()
        if precision == "auto":
            tuning = tune(
                artifact,
                checkpoint,
                output,
                budget=DEFAULT_BUDGET if budget is None else budget,
                texts=examples or TEXTS,
                tried=lambda candidate: bars.say(_tried(candidate)),
                progress=bars.update,
            )
            kept = kept_candidate(tuning)
            precision, keep_float = kept.precision, frozenset(kept.keep_float)
            bars.say(f"kept: {kept.setting}")
        manifest = export_bundle(
            artifact,
            checkpoint,
            output,
            precision=precision,
            stream=stream,
            target=target,
            calibration=[] if tuning else examples,  # what was measured on them is not fitted
            keep_float=keep_float,
            tuning=tuning,
            reference=reference if verify else None,
            allow_drift=allow_drift,
            overwrite=overwrite,
            progress=bars.update,
        )
    _summary(output, manifest, time.perf_counter() - started)


def _named(heads: Sequence[str]) -> dict[str, str]:
    """Each head by its name: the given one, else harm for the first and its folder's for others."""
    named: dict[str, str] = {}
    for place, given in enumerate(heads):
        name, equals, head = given.partition("=")
        if not equals or not re.fullmatch(HEAD_NAME, name):
            head = given
            name = Path(given.rstrip("/")).name if place else PRIMARY_HEAD
        if not re.fullmatch(HEAD_NAME, name):
            raise typer.BadParameter(
                f"{given!r}: {name!r} cannot name a head; give NAME={given}, a name of letters, "
                "digits, _ and -"
            )
        if name in named:
            raise typer.BadParameter(f"two heads are named {name!r}; give NAME=HEAD")
        named[name] = head
    return named


def _artifact_of(head: str) -> str:
    recipe = find_recipe(head)
    return str(recipe.artifact) if recipe else head


def _check_one_backbone(artifact: Artifact) -> None:
    """Refuse heads of several backbones, where none is named that all are to be read from."""
    for name, other in artifact.further.items():
        wanted = artifact.model_id, artifact.model_revision
        if (other.model_id, other.model_revision) != wanted:
            raise InputError(
                f"{other.source}: the head {name!r} is of {other.model_id} at "
                f"{other.model_revision}, but {artifact.name!r} of {wanted[0]} at {wanted[1]}; if "
                "these are one backbone, say where it is with --backbone"
            )


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

    def __init__(self) -> None:
        self._bars = rich_progress.Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            _Amount(),
            TimeRemainingColumn(),
            console=_console(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def update(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(
                _STAGES[stage], total=total, bytes=stage == "write"
            )
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def say(self, line: str) -> None:
        self._bars.console.print(line)

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()


class _Amount(ProgressColumn):
    """Bytes written of all, or texts or layers done of all."""

    _texts = MofNCompleteColumn()
    _bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        return (self._bytes if task.fields["bytes"] else self._texts).render(task)


def _tried(candidate: Candidate) -> str:
    return (
        f"{candidate.setting}: {candidate.milliseconds:.3g} ms a text, {candidate.speed:.2f}x "
        f"float32, |score difference| {candidate.mean_difference:.2g} in the mean, "
        f"verdicts changed: {candidate.changed_verdicts}, {candidate.outcome}"
    )


def _console() -> Console:
    """Standard error, where paths and reasons are shown as they are."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def _summary(output: Path, manifest: Manifest, seconds: float) -> None:
    console = _console()
    size = sum(file.size for file in manifest.files.values()) / 1e6
    backbone, report = manifest.backbone, manifest.verification
    console.print(
        f"{output}: {manifest.precision} for {manifest.target}, {backbone.blocks_kept} of "
        f"{backbone.blocks} blocks, {size:,.1f} MB in {seconds:.1f} s"
    )
    if manifest.quantization is not None:
        console.print(f"quantized: {manifest.quantization.fitted}")
        if manifest.quantization.wider:
            console.print(f"8 bits: {', '.join(manifest.quantization.wider)}")
    if manifest.carried_over:
        console.print(
            f"carried over: {manifest.carried_over} matrices keep the blocks that the file has"
        )
    if report.status == "unverified":
        console.print(Text.assemble(("unverified", "yellow"), f": {report.reason}"))
    else:
        console.print(
            f"{report.status}: |score difference| at most {report.max_difference:.1e}, mean "
            f"{report.mean_difference:.1e}, verdicts equal {report.verdict_agreement:.1%}, over "
            f"{report.texts} texts against {report.reference}"
        )
    for name, head in report.further.items():
        console.print(
            f"head {name}: |score difference| at most {head.max_difference:.1e}, mean "
            f"{head.mean_difference:.1e}, verdicts equal {head.verdict_agreement:.1%}"
        )
    if report.stream_max_difference is not None:
        console.print(
            f"streaming: |score difference| at most {report.stream_max_difference:.1e}, over "
            f"{report.stream_texts} texts read in chunks, against whole texts"
        )
    if report.exit_max_difference is not None:
        console.print(f"exits: segments within {report.exit_max_difference:.1e} of the whole graph")
