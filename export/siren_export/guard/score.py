"""score.onnx: a backbone up to its deepest tap, pooling and head, as one graph."""

import onnx_ir as ir

from siren_export.families.bert import author_encoder
from siren_export.families.config import BackboneConfig, DecoderConfig, check_max_length
from siren_export.families.llama import author_decoder
from siren_export.graph.activations import check_activation
from siren_export.graph.builder import FLOAT, INT64, GraphBuilder, GuardGraph, Output
from siren_export.graph.taps import Taps
from siren_export.graph.weights import CheckpointWeights
from siren_export.heads.mlp import author_features, author_head, author_pooling
from siren_export.sources.artifact import Artifact
from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import ArtifactError


def compute_dtype(precision: Precision, target: Target) -> ir.DataType:
    """The dtype of matrix products and attention that the graph is authored in.

    float32 for int8 and int4 too, but for TensorRT, which keeps the rest in float16.
    """
    if precision == "bf16":
        return ir.DataType.BFLOAT16
    single = precision == "fp32" or (target == "onnxruntime" and precision in ("int8", "int4"))
    return FLOAT if single else ir.DataType.FLOAT16


def author_guard(
    artifact: Artifact,
    checkpoint: Checkpoint,
    config: BackboneConfig,
    precision: Precision,
    target: Target = "onnxruntime",
) -> GuardGraph:
    """Author the whole-sequence graph: input_ids, attention_mask -> score, logits, features.

    Raises:
        ArtifactError: the head reads blocks or channels that the backbone lacks.
        CheckpointError: a tensor is missing or of another shape than config.json says, or the
            backbone has a setting that the graphs do not.
    """
    check_head_fits(artifact, config)
    check_max_length(config, artifact.max_length, checkpoint.source)
    check_activation(config.hidden_act, checkpoint.source)

    g = GraphBuilder(compute_dtype(precision, target))
    taps = Taps(artifact.pooling, tuple(s.layer for s in artifact.layers))
    weights = CheckpointWeights(checkpoint)
    input_ids = g.input("input_ids", INT64, ["batch", "sequence"])
    mask = g.input("attention_mask", INT64, ["batch", "sequence"])
    limit = artifact.max_length
    if isinstance(config, DecoderConfig):
        states = author_decoder(g, config, weights, input_ids, taps, limit)
    else:
        states = author_encoder(g, config, weights, input_ids, mask, taps, limit)
    pooled = author_pooling(g, artifact, states, mask)
    return g.build("guard", head_outputs(g, artifact, pooled))


def head_outputs(g: GraphBuilder, artifact: Artifact, pooled: ir.Value) -> dict[str, Output]:
    """Author the head over pooled float32 [batch, n_features]: score, logits, features."""
    features = author_features(g, artifact, pooled)
    score, logits = author_head(g, artifact, pooled)
    return {
        "score": Output(score, ["batch"]),
        "logits": Output(logits, ["batch", artifact.classes]),
        "features": Output(features, ["batch", artifact.n_features]),
    }


def check_head_fits(artifact: Artifact, config: BackboneConfig) -> None:
    """Check the head's blocks and channels against the backbone's.

    Raises:
        ArtifactError: one is out of range.
    """
    if artifact.deepest_layer >= config.blocks:
        raise ArtifactError(
            f"{artifact.source}: selected layer {artifact.deepest_layer} is out of range; the "
            f"backbone has blocks 0 to {config.blocks - 1}, so the head belongs to another one "
            f"(its own is {artifact.model_id!r})"
        )
    for selection in artifact.layers:
        channel = int(selection.channels.max())
        if channel >= config.hidden_size:
            raise ArtifactError(
                f"{artifact.source}: layer {selection.layer} selects channel {channel}; the "
                f"backbone has channels 0 to {config.hidden_size - 1}, so the head belongs to "
                f"another one (its own is {artifact.model_id!r})"
            )
