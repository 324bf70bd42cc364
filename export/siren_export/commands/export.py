"""`siren export`: compile a head and its backbone into a bundle."""

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from siren_export.bundle_writer import check_output
from siren_export.export import export_bundle
from siren_export.heads.base import Artifact
from siren_export.heads.exits import parse_depths, with_exits
from siren_export.passes.calibration import read_calibration
from siren_export.passes.table import row_of
from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_export.sources.recipes import find_recipe
from siren_export.tune.tune import DEFAULT_BUDGET, kept_candidate, tune
from siren_export.verify.own_states import OwnStates
from siren_export.verify.reference import (
    LlmSiren,
    Reference,
    read_reference,
    write_reference,
)
from siren_export.verify.texts import TEXTS
from siren_export.verify.unavailable import ReferenceUnavailable
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.progress import Progress
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import InputError

from .export_shown import export_bars, show_summary, tried_line
from .heads import load_heads, named_heads

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_EPILOG = """
Examples:

siren export minilm

siren export UofTCSSLab/SIREN-Qwen3-0.6B -o guards/qwen3 --precision fp16

siren export ./my-head --backbone ./my-backbone -o guards/mine

siren export ./my-head --backbone SmolLM2-135M-Instruct.Q4_1.gguf -o guards/smollm2

siren export ./my-head --backbone qwen3-moe-onnx --reference-backbone Qwen/Qwen3-30B-A3B -o moe

siren export ./my-head categories=./my-labels -o guards/both

siren export ./my-head --exits 2,4 -o guards/quick

siren export minilm --precision auto --budget 0.01 --calibration chats.jsonl
"""


@app.command(epilog=_EPILOG)
def export(
    heads: Annotated[
        list[str],
        typer.Argument(
            metavar="HEAD...",
            help="A SIREN artifact: a folder with siren_config.json and siren.safetensors, a hub "
            "repo id, or the name of a shipped guard (minilm, smollm2, gemma3-270m), which by "
            "itself brings its head of categories too, unless there are --exits. Several are read "
            "from one pass of the backbone; NAME=HEAD names one, else the first is named harm and "
            "the others by their folders. The first is the guard's score.",
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
            help="Its folder, repo id, GGUF or ONNX file, in place of what the artifact names. "
            "A graph that Optimum, torch's exporter or onnxruntime-genai's builder wrote is taken "
            "as it is, up to the deepest block that the head reads."
        ),
    ] = None,
    reference_backbone: Annotated[
        str | None,
        typer.Option(
            help="Of an ONNX backbone, the folder or repo id of the weights that it was made of, "
            "by which the bundle is verified. [default: the artifact's own where it is a folder]"
        ),
    ] = None,
    precision: Annotated[
        Literal[Precision, "auto"] | None,
        typer.Option(
            help="Of weights and matrix products; bf16 and fp8 are for TensorRT targets, int4 is "
            "not for tensorrt and tensorrt10. auto measures float32, int8, int4 (and float16 on "
            "Arm), the latter also with their most sensitive layers in float32, and keeps the "
            "fastest within --budget; for onnxruntime on a CPU. [default: fp32, or that of an ONNX "
            "backbone]"
        ),
    ] = None,
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
            help="Take a backbone that names code of its own (auto_map), which transformers runs "
            "when the bundle is verified. The bundle holds none of it.",
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
    named = named_heads(heads)
    recipe = find_recipe(next(iter(named.values())))
    if recipe is not None and exits is None and len(named) == 1:
        named |= recipe.further
    if output is None:
        if recipe is None:
            raise typer.BadParameter("--output is needed for a head that is not a shipped one")
        output = recipe.bundle
    _check_measured(precision, budget, target, calibration)
    _check_verified(verify, reference_backbone, record_reference)
    check_output(output, overwrite=overwrite)

    started = time.perf_counter()
    artifact = load_heads(named)
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

    if checkpoint.onnx is not None and (precision == "auto" or calibration is not None):
        raise typer.BadParameter(
            f"{source}: --precision auto and --calibration are for backbones authored here"
        )
    weights = _reference_checkpoint(
        checkpoint, artifact, reference_backbone, trust_remote_code=trust_remote_code
    )
    if weights is None and record_reference is not None:
        raise typer.BadParameter(
            f"{source}: --record-reference writes llm-siren's scores, which takes the weights that "
            "the ONNX file was made of; name them with --reference-backbone"
        )

    def reference(progress: Progress) -> Reference:
        if weights is None:
            return OwnStates(artifact, checkpoint).scores(progress)
        try:
            scores = LlmSiren(artifact, weights).scores(progress)
        except ReferenceUnavailable:
            if recipe is None or record_reference is not None:
                raise
            return read_reference(recipe.reference, artifact)
        if record_reference is not None:
            write_reference(record_reference, scores)
        return scores

    examples = read_calibration(calibration) if calibration else []
    with export_bars() as bars:
        tuning, keep_float = None, frozenset[str]()
        if precision == "auto":
            tuning = tune(
                artifact,
                checkpoint,
                output,
                budget=DEFAULT_BUDGET if budget is None else budget,
                texts=examples or TEXTS,
                tried=lambda candidate: bars.say(tried_line(candidate)),
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
            as_named=recipe is not None and backbone is None,
            reference=reference if verify else None,
            allow_drift=allow_drift,
            overwrite=overwrite,
            progress=bars.update,
        )
        if rounded := _rounded_anew(checkpoint, manifest):
            bars.say(
                f"rounded anew: {rounded} matrices that the file has in blocks, since {target} "
                "takes blocks of 4 bits without minimums (Q4_0) alone; int4 for onnxruntime keeps "
                "all"
            )
    show_summary(output, manifest, time.perf_counter() - started)
    if record_reference is not None and manifest.verification.status == "unverified":
        raise InputError(
            f"{record_reference}: no scores were recorded: {manifest.verification.reason}; the "
            "bundle is there, unverified"
        )


def _check_measured(
    precision: Precision | Literal["auto"] | None,
    budget: float | None,
    target: Target,
    calibration: Path | None,
) -> None:
    """Refuse options of a precision that is measured or fitted, where it is another."""
    if precision == "auto" and target != "onnxruntime":
        raise typer.BadParameter(
            "--precision auto measures on ONNX Runtime's CPU provider, so it is for --target "
            f"onnxruntime; give {target} a precision"
        )
    if budget is not None and precision != "auto":
        raise typer.BadParameter("--budget is for --precision auto")
    if calibration is not None and precision != "auto":
        chosen = precision or "fp32"
        if row_of(target, chosen).calibration == "none":
            raise typer.BadParameter(f"--calibration: {chosen} for {target} is fitted to no texts")


def _check_verified(
    verify: bool, reference_backbone: str | None, record_reference: Path | None
) -> None:
    """Refuse options of a verification that is left out, and scores that cannot be recorded."""
    if reference_backbone is not None and not verify:
        raise typer.BadParameter("--reference-backbone is for what --no-verify omits")
    if record_reference is not None:
        if not verify:
            raise typer.BadParameter("--record-reference needs the scores that --no-verify omits")
        if not os.access(record_reference.absolute().parent, os.W_OK):
            raise typer.BadParameter(
                f"--record-reference {record_reference}: there is no such folder, or it cannot be "
                "written"
            )


def _rounded_anew(checkpoint: Checkpoint, manifest: Manifest) -> int:
    """How many matrices int4 rounds that the checkpoint has in blocks of few bits."""
    if manifest.precision != "int4" or manifest.target == "onnxruntime":
        return 0
    weights = checkpoint.weights
    kept = tuple(f"layers.{index}." for index in range(manifest.backbone.blocks_kept))
    matrices = [name for name in weights.tensors if name.startswith(kept)]
    stored = sum(weights.block_layout(name) is not None for name in matrices)
    return stored - manifest.carried_over


def _reference_checkpoint(
    checkpoint: Checkpoint, artifact: Artifact, named: str | None, *, trust_remote_code: bool
) -> Checkpoint | None:
    """What the bundle is verified by: the checkpoint, or the weights that an ONNX file is of.

    None where those are not at hand.
    """
    if checkpoint.onnx is None:
        if named is not None:
            raise typer.BadParameter("--reference-backbone is for a backbone that is an ONNX file")
        return checkpoint
    if named is None and Path(artifact.model_id).is_dir():
        named = artifact.model_id
    return None if named is None else load_checkpoint(named, trust_remote_code=trust_remote_code)


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
