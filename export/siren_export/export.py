"""Artifact + checkpoint -> bundle: author the graphs, stream the weights, verify, publish."""

import logging
import tempfile
from collections.abc import Sequence, Set
from pathlib import Path

import msgspec

from siren_runtime.bundle.graphs import SPANS, STREAM_HEAD, explain_name
from siren_runtime.bundle.manifest import NOTICE_FILE, TOKENIZER_FILE, FileSpec, Manifest
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.report import Quantization, Tuning
from siren_runtime.bundle.trajectory import TEMPLATE_FILE
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import ArtifactError, InputError
from siren_runtime.text.tokenizer import Tokenizer

from .bundle_writer import check_output, staging, write_file, write_manifest
from .describe import backbone_entry, describe
from .families.base import Backbone, StateSource
from .families.imported import ImportedBackbone
from .families.registry import backbone_of
from .graph.builder import GuardGraph
from .graph_writer import graph_file, write_graphs
from .guard.cascade import author_cascade, segments
from .guard.explain import author_explain
from .guard.score import author_head_alone, author_score, author_spans
from .guard.stream import author_stream, context_length
from .guard.stream_cascade import author_stream_cascade, author_stream_head, stream_segments
from .heads.base import Artifact
from .heads.notice import read_notices
from .heads.together import head_set
from .passes.calibration import Calibration, measure_inputs
from .passes.edit import linears
from .passes.example_texts import EXAMPLE_TEXTS
from .passes.imported import own_precision, row_of_checkpoint
from .passes.sensitive import sensitive
from .passes.table import Row, lower
from .sources.chat_template import ChatFormat, read_chat_format
from .sources.checkpoint import Checkpoint
from .verify.accept import accepted, check_remote_code
from .verify.bundle import ReferenceSource
from .verify.embedding import without_row

_log = logging.getLogger(__name__)


def export_bundle(
    artifact: Artifact,
    checkpoint: Checkpoint,
    output: Path,
    *,
    precision: Precision | None = None,
    target: Target = "onnxruntime",
    stream: bool = True,
    spans: bool = True,
    calibration: Sequence[str] = (),
    keep_float: Set[str] = frozenset(),
    tuning: Tuning | None = None,
    as_named: bool = False,
    reference: ReferenceSource | None = None,
    allow_drift: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Compile a head and its backbone into the bundle folder `output`.

    Args:
        artifact: the head, those that are read with it, and its exits.
        precision: of weights and matrix products; None is float32, or what an ONNX file has.
        target: what will run or compile the graph, and so which operators it may hold.
        stream: also write the streaming graph, where the backbone is a decoder; in bf16, which
            numpy does not have, there is none.
        spans: also write the graph of spans, where the backbone is an encoder and ONNX Runtime is
            to run it; a decoder's streaming graph gives their means.
        calibration: example texts, by which int8, int4 and fp8 fit scales and rounding; by default
            built-in ones.
        keep_float: names of the backbone's matrices that int8 and int4 for ONNX Runtime leave in
            float32.
        tuning: how the precision was chosen (`siren_export.tune.tune`), kept in the manifest.
        as_named: the checkpoint is known to be what the head names, so the manifest calls it so;
            else it names what was read.
        reference: gives the scores to verify against; None leaves the bundle unverified.
        allow_drift: keep a bundle whose verification misses its precision's bound.
        overwrite: replace a bundle that is at `output`.
        progress: called as the work goes on.

    Returns:
        The manifest of the bundle, its verification report included.

    Raises:
        ArtifactError, CheckpointError: the inputs are unusable, or the checkpoint names code of its
            own and cannot be verified; nothing is left at `output`.
        InputError: the target or the ONNX file has no such precision, or no exits, or quantizes
            nothing that `keep_float` names.
        BundleError: `output` cannot be written, the head's max_length leaves no token for a text,
            or the scores drifted beyond the bound.
    """
    check_output(output, overwrite=overwrite)
    backbone = backbone_of(checkpoint)
    precision = precision or own_precision(checkpoint)
    row = row_of_checkpoint(checkpoint, target, precision)
    chat = _chat_format(artifact, backbone, checkpoint)
    _check_exits(artifact, checkpoint, target)
    # As whoever opens the bundle.
    Tokenizer(checkpoint.path / TOKENIZER_FILE, artifact.max_length, checkpoint.tokenizer_json)
    context = context_length(artifact, backbone) if stream and row.streams else None
    encoder = not backbone.causal and artifact.head.spec.pools_mean
    spans = spans and encoder and target == "onnxruntime"
    graphs = _author(artifact, backbone, checkpoint, row, context, spans=spans)
    length = artifact.max_length
    inputs = calibrate(graphs["score"], checkpoint, length, calibration, row, progress)
    _check_kept(keep_float, graphs["score"], row, f"{precision} for {target}")
    wider = _wider(graphs["score"], inputs, row, keep_float)
    for graph in graphs.values():
        lower(graph, row, keep_float, inputs, wider)
    if artifact.exits:
        graphs |= segments(graphs.pop("cascade"), artifact, backbone)
    if "stream.cascade" in graphs:
        assert not isinstance(backbone, ImportedBackbone)  # what streams is neither
        assert context is not None
        graphs |= stream_segments(graphs.pop("stream.cascade"), artifact, backbone, context)
    explaining = _author_explain(artifact)
    with staging(output, overwrite=overwrite) as folder:
        files = write_graphs({**graphs, **explaining}, folder, progress)
        if row.check is not None:
            for name in graphs:
                row.check(folder / graph_file(name))
        graphs |= explaining
        files |= _write_texts(folder, artifact, checkpoint, chat)
        manifest = describe(
            artifact,
            row,
            precision,
            target,
            backbone=backbone_entry(artifact, checkpoint, backbone, context, as_named=as_named),
            chat=chat,
            graphs=graphs,
            files=files,
            tuning=tuning,
            quantization=None
            if inputs is None
            else Quantization(len(calibration or EXAMPLE_TEXTS), not calibration, sorted(wider)),
        )
        if reference is not None:
            bundle = Bundle(folder, manifest)
            report = accepted(
                output, checkpoint, bundle, reference, progress, allow_drift=allow_drift
            )
            manifest = msgspec.structs.replace(manifest, verification=report)
        manifest = _with_tokens_noted(output, manifest, checkpoint)
        check_remote_code(checkpoint, manifest.verification)
        write_manifest(folder, manifest)
    return manifest


def _wider(
    graph: GuardGraph, inputs: Calibration | None, row: Row, keep_float: Set[str]
) -> frozenset[str]:
    """The names of the matrices that keep 8 bits where the others get 4."""
    if row.four_bits is None or inputs is None:
        return frozenset()
    limits = row.four_bits, row.encoder_eight_bits
    return sensitive(graph, inputs, *limits, carries_over=row.carries_over) - keep_float


def _write_texts(
    folder: Path, artifact: Artifact, checkpoint: Checkpoint, chat: ChatFormat | None
) -> dict[str, FileSpec]:
    """Write what stands beside the graphs: the tokenizer, notices and the chat template."""
    found = {TOKENIZER_FILE: checkpoint.tokenizer_json}
    if notices := read_notices(artifact):
        found[NOTICE_FILE] = notices
    if chat is not None:
        found[TEMPLATE_FILE] = chat.template.encode()
    return {name: write_file(folder / name, content) for name, content in found.items()}


def _with_tokens_noted(output: Path, manifest: Manifest, checkpoint: Checkpoint) -> Manifest:
    """Say in the log and in the report which tokens the embedding has no row for."""
    note = without_row(checkpoint.tokenizer_json, manifest.backbone.vocab_size)
    if note is None:
        return manifest
    _log.warning("%s: %s", output, note)
    report = manifest.verification
    reason = note if report.reason is None else f"{report.reason}; {note}"
    report = msgspec.structs.replace(report, reason=reason)
    return msgspec.structs.replace(manifest, verification=report)


def _chat_format(
    artifact: Artifact, backbone: StateSource, checkpoint: Checkpoint
) -> ChatFormat | None:
    """The chat template that a trajectory head reads through; None for heads of texts."""
    if artifact.task == "content":
        return None
    if not backbone.causal:
        raise ArtifactError(
            f"{artifact.source}: a trajectory head reads the last token of a decoder, and "
            f"{backbone.model_type!r} is an encoder, so the head belongs to another backbone"
        )
    return read_chat_format(checkpoint)


def _author(
    artifact: Artifact,
    backbone: Backbone | ImportedBackbone,
    checkpoint: Checkpoint,
    row: Row,
    context: int | None,
    *,
    spans: bool,
) -> dict[str, GuardGraph]:
    """Author the graphs of a bundle by name; those of streams where there is a context.

    Args:
        spans: whether the graph of a text's spans is among them.
    """
    weights = checkpoint.weights
    graphs = {"score": author_score(artifact, backbone, weights, row.compute)}
    if spans:
        graphs[SPANS] = author_spans(artifact, backbone, weights, row.compute)
    if context is not None and not isinstance(backbone, ImportedBackbone):
        graphs["stream"] = author_stream(artifact, backbone, weights, row.compute, context)
        graphs["head"] = author_head_alone(artifact)
        if artifact.exits:
            rest = row.compute, context
            graphs["stream.cascade"] = author_stream_cascade(artifact, backbone, weights, *rest)
            graphs[STREAM_HEAD] = author_stream_head(artifact)
    if artifact.exits:
        graphs["cascade"] = author_cascade(artifact, backbone, weights, row.compute)
    return graphs


def _author_explain(artifact: Artifact) -> dict[str, GuardGraph]:
    """The graphs that explain scores, which no pass changes: they run on the CPU."""
    heads = head_set(artifact)
    return {explain_name(name): author_explain(heads, name) for name in heads.heads}


def calibrate(
    graph: GuardGraph,
    checkpoint: Checkpoint,
    max_length: int,
    texts: Sequence[str],
    row: Row,
    progress: Progress,
) -> Calibration | None:
    """Measure the linears' inputs, where the row makes use of them.

    Args:
        graph: of whole texts, as authored.
        texts: as the guard will see them; by default built-in ones.
    """
    if row.calibration == "none":
        return None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_graphs({"score": graph}, folder, silent)
        content, rows = checkpoint.tokenizer_json, checkpoint.vocab_size
        tokenizer = Tokenizer(checkpoint.path / TOKENIZER_FILE, max_length, content, rows)
        moments = row.calibration == "moments"
        score, texts = folder / graph_file("score"), texts or EXAMPLE_TEXTS
        return measure_inputs(score, tokenizer, texts, moments=moments, progress=progress)


def _check_exits(artifact: Artifact, checkpoint: Checkpoint, target: Target) -> None:
    if artifact.exits and checkpoint.onnx is not None:
        raise InputError(
            f"{checkpoint.onnx.path}: exits are for backbones authored here, not for a graph that "
            "is taken as it is: export it without them"
        )
    if artifact.exits and target != "onnxruntime":
        raise InputError(
            f"exits are for target onnxruntime, not for {target}: export for it without them"
        )


def _check_kept(keep_float: Set[str], graph: GuardGraph, row: Row, setting: str) -> None:
    matrices = {linear.matrix_name for linear in linears(graph)} if row.keeps_float else set[str]()
    for name in sorted(keep_float - matrices):
        raise InputError(f"keep_float: {name!r} is no matrix that {setting} quantizes")
