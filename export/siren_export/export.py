"""Artifact + checkpoint -> bundle: author the graph, stream the weights, verify, publish."""

import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec
import onnx_ir as ir

from siren_runtime import Guard
from siren_runtime.backends import open_backend
from siren_runtime.bundle import Bundle
from siren_runtime.errors import BundleError, InputError
from siren_runtime.manifest import (
    CLEANER,
    FORMAT_VERSION,
    TOKENIZER_FILE,
    Backbone,
    FileSpec,
    GraphSpec,
    Head,
    Manifest,
    Precision,
    Target,
    TensorSpec,
    TextRules,
    Verification,
)
from siren_runtime.text import JOINER
from siren_runtime.tokenizer import Tokenizer

from .artifact import Artifact
from .bundle_writer import WEIGHTS_FILE, staging, write_file, write_manifest
from .calibration import Ranges, measure_ranges
from .checkpoint import Checkpoint
from .config import parse_config
from .graph.builder import GuardGraph
from .graph.guard import author_guard
from .passes.targets import check_supported, lower, needs_calibration
from .verify import BOUNDS, Advance, Reference, ReferenceUnavailable, verify
from .weights import write_weights

SCORE_FILE = "score.onnx"
_MADE_BY = ("siren-edge", "onnx", "onnx-ir", "numpy", "ml_dtypes")

Stage = Literal["write", "reference", "verify"]
Progress = Callable[[Stage, int, int], None]  # stage; bytes or texts done; in all
ReferenceSource = Callable[[Advance], Reference]  # raises ReferenceUnavailable


def export_bundle(
    artifact: Artifact,
    checkpoint: Checkpoint,
    output: Path,
    *,
    precision: Precision = "fp32",
    target: Target = "onnxruntime",
    calibration: Sequence[str] = (),
    reference: ReferenceSource | None = None,
    allow_drift: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Compile a head and its backbone into the bundle folder `output`.

    Args:
        precision: of weights and matrix products.
        target: what will run or compile the graph, and so which operators it may hold.
        calibration: example texts, for a target that quantizes activations.
        reference: gives the scores to verify against; None leaves the bundle unverified.
        allow_drift: keep a bundle whose verification misses its precision's bound.
        overwrite: replace a bundle that is at `output`.
        progress: called as the work goes on.

    Returns:
        The manifest of the bundle, its verification report included.

    Raises:
        ArtifactError, CheckpointError: the inputs are unusable; nothing is left at `output`.
        BundleError: `output` cannot be written, or the scores drifted beyond the bound.
    """
    config = parse_config(checkpoint.config, checkpoint.source)
    check_supported(precision, target)
    graph = author_guard(artifact, checkpoint, config, precision, target)
    ranges = None
    if needs_calibration(precision, target):
        ranges = _calibrated(graph, checkpoint, artifact.max_length, calibration)
    lower(graph, precision, target, ranges)
    with staging(output, overwrite=overwrite) as folder:
        files = _write_graph(graph, folder, progress)
        files[TOKENIZER_FILE] = write_file(folder / TOKENIZER_FILE, checkpoint.tokenizer_json)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            task="content",
            backbone=Backbone(
                id=artifact.model_id,
                revision=artifact.model_revision,
                model_type=config.model_type,
                blocks=config.blocks,
                blocks_kept=artifact.deepest_layer + 1,
            ),
            head=Head(
                kind="mlp",
                pooling=artifact.pooling,
                layers=[selection.layer for selection in artifact.layers],
                features=artifact.n_features,
                classes=artifact.classes,
            ),
            text=TextRules(
                cleaner=CLEANER,
                joiner=JOINER,
                max_length=artifact.max_length,
                truncation_side="right",
            ),
            threshold=artifact.threshold,
            precision=precision,
            target=target,
            graphs={"score": _graph_spec(graph.model.graph)},
            files=files,
            verification=Verification(status="unverified", reason="not asked for"),
            versions={p: metadata.version(p) for p in _MADE_BY},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        if reference is not None:
            report = _verified(Bundle(folder, manifest), reference, progress)
            if report.status == "drifted" and not allow_drift:
                raise BundleError(
                    f"{output}: scores drift from {report.reference} by up to "
                    f"{report.max_difference:.2e}, beyond the {precision} bound of "
                    f"{report.bound:.0e} (worst text {report.worst_text!r}); "
                    "give --allow-drift to keep the bundle all the same"
                )
            manifest = msgspec.structs.replace(manifest, verification=report)
        write_manifest(folder, manifest)
    return manifest


def _write_graph(graph: GuardGraph, folder: Path, progress: Progress) -> dict[str, FileSpec]:
    """Write weights.bin, then the graph that points into it."""
    total = sum(weight.nbytes for weight in graph.weights.values())
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress("write", min(done, total), total)

    offsets, weights_spec = write_weights(graph.weights, folder / WEIGHTS_FILE, advance)
    for name, offset in offsets.items():
        weight = graph.weights[name]
        graph.model.graph.initializers[name].const_value = ir.ExternalTensor(
            WEIGHTS_FILE,
            offset,
            weight.nbytes,
            weight.dtype,
            shape=ir.Shape(weight.shape),
            name=name,
        )
    proto = ir.to_proto(graph.model).SerializeToString(deterministic=True)
    return {
        SCORE_FILE: write_file(folder / SCORE_FILE, proto),
        WEIGHTS_FILE: weights_spec,
    }


def _calibrated(
    graph: GuardGraph, checkpoint: Checkpoint, max_length: int, texts: Sequence[str]
) -> Ranges:
    if not texts:
        raise InputError(
            "this target quantizes activations, whose scales example texts give; name a file of "
            "them, one a line, with --calibration"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_graph(graph, folder, lambda stage, done, total: None)
        write_file(folder / TOKENIZER_FILE, checkpoint.tokenizer_json)
        tokenizer = Tokenizer(folder / TOKENIZER_FILE, max_length)
        return measure_ranges(folder / SCORE_FILE, tokenizer, texts)


def _graph_spec(graph: ir.Graph) -> GraphSpec:
    def specs(values: Sequence[ir.Value]) -> list[TensorSpec]:
        return [
            TensorSpec(
                name=str(value.name),
                dtype=value.dtype.numpy().name,
                shape=[d if isinstance(d, int) else str(d.value) for d in value.shape],
            )
            for value in values
            if value.dtype is not None and value.shape is not None
        ]

    return GraphSpec(
        file=SCORE_FILE,
        opset=graph.opset_imports[""],
        inputs=specs(graph.inputs),
        outputs=specs(graph.outputs),
    )


def _verified(bundle: Bundle, source: ReferenceSource, progress: Progress) -> Verification:
    try:
        reference = source(lambda done, total: progress("reference", done, total))
    except ReferenceUnavailable as reason:
        return Verification(status="unverified", reason=str(reason))
    bound = BOUNDS[bundle.manifest.precision]
    tokenizer = Tokenizer(bundle.file(TOKENIZER_FILE), bundle.manifest.text.max_length)
    guard = Guard(bundle, tokenizer, open_backend(bundle, "cpu"))
    return verify(guard, reference, bound, lambda done, total: progress("verify", done, total))
