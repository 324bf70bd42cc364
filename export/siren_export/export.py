"""Artifact + checkpoint -> bundle: author the graph, stream the weights, verify, publish."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec
import onnx_ir as ir

from siren_export.families.config import DecoderConfig, parse_config
from siren_export.graph.builder import GuardGraph
from siren_export.graph.weights import Weight, write_weights
from siren_export.guard.score import author_guard
from siren_export.guard.stream import author_head_alone, author_stream, context_length
from siren_export.passes.calibration import Calibration, measure_inputs
from siren_export.passes.edit import linears
from siren_export.passes.targets import check_supported, lower, needs_calibration, uses_calibration
from siren_export.passes.tensorrt10 import check_operators
from siren_export.passes.widen_bfloat16 import widen_bfloat16
from siren_export.sources.artifact import Artifact
from siren_export.sources.checkpoint import Checkpoint
from siren_export.verify.scores import BOUNDS, Advance, Reference, ReferenceUnavailable, verify
from siren_export.verify.streams import with_stream_verification
from siren_runtime import Guard
from siren_runtime.bundle.graphs import GraphSpec, TensorSpec
from siren_runtime.bundle.heads import PRIMARY_HEAD, HeadSpec
from siren_runtime.bundle.manifest import (
    CLEANER,
    FORMAT_VERSION,
    TOKENIZER_FILE,
    Backbone,
    FileSpec,
    Manifest,
    TextRules,
)
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.report import Tuning, Verification
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import BundleError, InputError
from siren_runtime.scoring.engines import Engines, Request, open_backend
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.rules import JOINER
from siren_runtime.text.tokenizer import Tokenizer

from .bundle_writer import WEIGHTS_FILE, staging, write_file, write_manifest

_MADE_BY = ("siren-edge", "onnx", "onnx-ir", "numpy", "ml_dtypes")
_WIDENED = "widened.onnx"
_WIDENED_NOTE = "run in float32 with every result rounded to bfloat16; no engine was run"

Stage = Literal["write", "compare", "time", "probe", "reference", "verify"]
Progress = Callable[[Stage, int, int], None]  # stage; bytes, texts or layers done; in all
ReferenceSource = Callable[[Advance], Reference]  # raises ReferenceUnavailable


def export_bundle(
    artifact: Artifact,
    checkpoint: Checkpoint,
    output: Path,
    *,
    precision: Precision = "fp32",
    target: Target = "onnxruntime",
    stream: bool = True,
    calibration: Sequence[str] = (),
    keep_float: Set[str] = frozenset(),
    tuning: Tuning | None = None,
    reference: ReferenceSource | None = None,
    allow_drift: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Manifest:
    """Compile a head and its backbone into the bundle folder `output`.

    Args:
        precision: of weights and matrix products.
        target: what will run or compile the graph, and so which operators it may hold.
        stream: also write the streaming graph, where the backbone is a decoder; in bf16, which
            numpy does not have, there is none.
        calibration: example texts, for a target that quantizes activations, which needs them, and
            for int4, whose weights are rounded by the layers' inputs on them.
        keep_float: names of the backbone's matrices that int8 and int4 for ONNX Runtime leave in
            float32.
        tuning: how the precision was chosen (`siren_export.tune.tune`), kept in the manifest.
        reference: gives the scores to verify against; None leaves the bundle unverified.
        allow_drift: keep a bundle whose verification misses its precision's bound.
        overwrite: replace a bundle that is at `output`.
        progress: called as the work goes on.

    Returns:
        The manifest of the bundle, its verification report included.

    Raises:
        ArtifactError, CheckpointError: the inputs are unusable; nothing is left at `output`.
        InputError: the target has no such precision, needs `calibration`, or quantizes nothing
            that `keep_float` names.
        BundleError: `output` cannot be written, or the scores drifted beyond the bound.
    """
    config = parse_config(checkpoint.config, checkpoint.source)
    check_supported(precision, target)
    graphs = {"score": author_guard(artifact, checkpoint, config, precision, target)}
    context: int | None = None
    if stream and precision != "bf16" and isinstance(config, DecoderConfig):
        context = context_length(artifact, config)
        graphs["stream"] = author_stream(artifact, checkpoint, config, precision, target)
        graphs["head"] = author_head_alone(artifact)
    inputs = None
    needed = needs_calibration(precision, target)
    if needed or (calibration and uses_calibration(precision, target)):
        inputs = _calibrated(graphs["score"], checkpoint, artifact.max_length, calibration)
    _check_kept(keep_float, graphs["score"], precision, target)
    for graph in graphs.values():
        lower(graph, precision, target, keep_float, inputs)
    with staging(output, overwrite=overwrite) as folder:
        files = write_graphs(graphs, folder, progress)
        if target == "tensorrt10":
            for name in graphs:
                check_operators(folder / graph_file(name))
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
                context_length=context,
            ),
            heads={
                PRIMARY_HEAD: HeadSpec(
                    kind="mlp",
                    pooling=artifact.pooling,
                    layers=[selection.layer for selection in artifact.layers],
                    features=artifact.n_features,
                    classes=artifact.classes,
                    labels=list(artifact.labels),
                )
            },
            text=TextRules(
                cleaner=CLEANER,
                joiner=JOINER,
                max_length=artifact.max_length,
                truncation_side="right",
            ),
            threshold=artifact.threshold,
            precision=precision,
            target=target,
            graphs={name: _graph_spec(name, graph.model.graph) for name, graph in graphs.items()},
            files=files,
            verification=Verification(status="unverified", reason="not asked for"),
            tuning=tuning,
            saturation_free=target == "onnxruntime",
            versions={p: metadata.version(p) for p in _MADE_BY},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        if reference is not None:
            report = _verified(Bundle(folder, manifest), reference, progress)
            if report.status == "drifted" and not allow_drift:
                raise BundleError(
                    f"{output}: scores drift from {report.reference} by up to "
                    f"{report.max_difference:.2e}, {report.mean_difference:.2e} in the mean, "
                    f"beyond the {precision} bound of {report.bound:.0e} for the "
                    f"{report.bounded} (worst text {report.worst_text!r}); "
                    "give --allow-drift to keep the bundle all the same"
                )
            if "stream" in graphs and find_spec("onnxruntime") is not None:
                report = with_stream_verification(Bundle(folder, manifest), report)
                if report.stream_drifted and not allow_drift:
                    raise BundleError(
                        f"{output}: scores of stream.onnx, fed in chunks, are up to "
                        f"{report.stream_max_difference:.2e} from those of score.onnx, beyond the "
                        f"{precision} bound of {report.stream_bound:.0e}; give --no-stream, or "
                        "--allow-drift to keep the bundle all the same"
                    )
            manifest = msgspec.structs.replace(manifest, verification=report)
        write_manifest(folder, manifest)
    return manifest


def graph_file(name: str) -> str:
    """The file of the graph that the manifest calls `name`."""
    return f"{name}.onnx"


def _check_kept(
    keep_float: Set[str], graph: GuardGraph, precision: Precision, target: Target
) -> None:
    quantized = target == "onnxruntime" and precision in ("int8", "int4")
    matrices = {linear.matrix_name for linear in linears(graph)} if quantized else set[str]()
    for name in sorted(keep_float - matrices):
        raise InputError(
            f"keep_float: {name!r} is no matrix that {precision} for {target} quantizes"
        )


def write_graphs(
    graphs: Mapping[str, GuardGraph], folder: Path, progress: Progress
) -> dict[str, FileSpec]:
    """Write weights.bin, each weight once, then the graphs that point into it.

    Returns:
        What each file is, by its name. A graph's is `graph_file` of its name.
    """
    weights = _union(graphs)
    total = sum(weight.nbytes for weight in weights.values())
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress("write", min(done, total), total)

    offsets, weights_spec = write_weights(weights, folder / WEIGHTS_FILE, advance)
    files = {WEIGHTS_FILE: weights_spec}
    for name, graph in graphs.items():
        for weight_name, weight in graph.weights.items():
            graph.model.graph.initializers[weight_name].const_value = ir.ExternalTensor(
                WEIGHTS_FILE,
                offsets[weight_name],
                weight.nbytes,
                weight.dtype,
                shape=ir.Shape(weight.shape),
                name=weight_name,
            )
        proto = ir.to_proto(graph.model).SerializeToString(deterministic=True)
        files[graph_file(name)] = write_file(folder / graph_file(name), proto)
    return files


def _union(graphs: Mapping[str, GuardGraph]) -> dict[str, Weight]:
    """The weights of all graphs; those of one name are one weight."""
    union: dict[str, Weight] = {}
    for graph in graphs.values():
        for name, weight in graph.weights.items():
            first = union.setdefault(name, weight)
            if (first.dtype, first.shape) != (weight.dtype, weight.shape):
                raise AssertionError(f"two graphs have different weights {name!r}")
    return union


def _calibrated(
    graph: GuardGraph, checkpoint: Checkpoint, max_length: int, texts: Sequence[str]
) -> Calibration:
    if not texts:
        raise InputError(
            "this target quantizes activations, whose scales example texts give; name a file of "
            "them, one a line, with --calibration"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_graphs({"score": graph}, folder, lambda stage, done, total: None)
        write_file(folder / TOKENIZER_FILE, checkpoint.tokenizer_json)
        tokenizer = Tokenizer(folder / TOKENIZER_FILE, max_length)
        return measure_inputs(folder / graph_file("score"), tokenizer, texts)


def _graph_spec(name: str, graph: ir.Graph) -> GraphSpec:
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
        file=graph_file(name),
        opset=graph.opset_imports[""],
        inputs=specs(graph.inputs),
        outputs=specs(graph.outputs),
    )


def _verified(bundle: Bundle, source: ReferenceSource, progress: Progress) -> Verification:
    if find_spec("onnxruntime") is None:
        reason = "onnxruntime is not installed; pip install 'siren-edge[cpu]'"
        return Verification(status="unverified", reason=reason)
    try:
        reference = source(lambda done, total: progress("reference", done, total))
    except ReferenceUnavailable as reason:
        return Verification(status="unverified", reason=str(reason))
    bound = BOUNDS[bundle.manifest.precision]
    tokenizer = Tokenizer(bundle.file(TOKENIZER_FILE), bundle.manifest.text.max_length)
    with _run_on_cpu(bundle) as (runnable, note):
        engines = Engines(open_backend(runnable, Request("cpu")))
        guard = Guard([Scorer(runnable, engines, tokenizer)])
        report = verify(
            guard, reference, bound, lambda done, total: progress("verify", done, total)
        )
    return msgspec.structs.replace(report, reason=note)


@contextmanager
def _run_on_cpu(bundle: Bundle) -> Iterator[tuple[Bundle, str | None]]:
    """The bundle in a form that ONNX Runtime's CPU runs, and what there is to know of that form."""
    if bundle.manifest.precision != "bf16":
        yield bundle, None
        return
    graph = bundle.manifest.graphs["score"]
    model = ir.load(bundle.file(graph.file))
    widen_bfloat16(model)
    widened = bundle.path / _WIDENED
    try:
        ir.save(model, widened)
        spec = msgspec.structs.replace(graph, file=_WIDENED)
        manifest = msgspec.structs.replace(bundle.manifest, graphs={"score": spec})
        yield Bundle(bundle.path, manifest), _WIDENED_NOTE
    finally:
        widened.unlink(missing_ok=True)
