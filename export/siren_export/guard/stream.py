"""stream.onnx: a decoder guard that reads only the new tokens; and head.onnx, its head alone.

Both refer to the weights of score.onnx by the same names, so that a bundle holds them once.
"""

from siren_export.families.config import DecoderConfig
from siren_export.families.llama import author_decoder
from siren_export.graph.builder import FLOAT, INT64, GraphBuilder, GuardGraph, Output
from siren_export.graph.cache import CHUNK, PAST, KeyValueCache
from siren_export.graph.taps import Taps
from siren_export.graph.weights import CheckpointWeights
from siren_export.heads.mlp import author_head, author_running_pooling
from siren_export.sources.artifact import Artifact
from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.bundle.types import Precision, Target

from .score import compute_dtype, head_outputs


def context_length(artifact: Artifact, config: DecoderConfig) -> int:
    """How many tokens a stream may hold: the backbone's context, at least the head's limit."""
    return max(config.context_length, artifact.max_length)


def author_stream(
    artifact: Artifact,
    checkpoint: Checkpoint,
    config: DecoderConfig,
    precision: Precision,
    target: Target = "onnxruntime",
) -> GuardGraph:
    """Author the incremental graph.

    Inputs: input_ids int64 [batch, chunk]; past_lengths int64 [batch], the tokens that count of
    past.{l}.key/value [batch, kv_heads, past, head_dim]; feature_sum float32 [batch, n_features],
    the sums of the selected neurons over feature_count int64 [batch] tokens. Outputs, for each
    prefix that ends in the chunk: score float32 [batch, chunk], logits float32 [batch, chunk,
    classes], feature_sums float32 [batch, chunk, n_features]; and the chunk's own
    present.{l}.key/value [batch, kv_heads, chunk, head_dim], to be written behind the past. The
    cache has the compute dtype.

    `author_guard` has checked that head and backbone fit.

    Raises:
        CheckpointError: a tensor is missing or of another shape than config.json says.
    """
    g = GraphBuilder(compute_dtype(precision, target))
    taps = Taps(artifact.pooling, tuple(s.layer for s in artifact.layers))
    input_ids = g.input("input_ids", INT64, ["batch", CHUNK])
    cache = KeyValueCache(config, g.input("past_lengths", INT64, ["batch"]))
    feature_sum = g.input("feature_sum", FLOAT, ["batch", artifact.n_features])
    feature_count = g.input("feature_count", INT64, ["batch"])

    weights, limit = CheckpointWeights(checkpoint), context_length(artifact, config)
    states = author_decoder(g, config, weights, input_ids, taps, limit, cache)
    sums, means = author_running_pooling(g, artifact, states, feature_sum, feature_count)
    rows = g.op("Reshape", means, g.const([-1, artifact.n_features]))
    score, logits = author_head(g, artifact, rows)
    shape = g.op("Shape", input_ids)
    score = g.op("Reshape", score, shape)
    logits = g.op("Reshape", logits, g.op("Concat", shape, g.const([artifact.classes]), axis=0))

    present: list[int | str] = [CHUNK if size == PAST else size for size in cache.shape]
    return g.build(
        "stream",
        {
            "score": Output(score, ["batch", CHUNK]),
            "logits": Output(logits, ["batch", CHUNK, artifact.classes]),
            "feature_sums": Output(sums, ["batch", CHUNK, artifact.n_features]),
            **{name: Output(value, present, g.compute) for name, value in cache.present.items()},
        },
    )


def author_head_alone(artifact: Artifact) -> GuardGraph:
    """Author the head over neurons that were pooled elsewhere.

    Input: pooled float32 [batch, n_features], not weighted by layer. Outputs: as score.onnx has.
    """
    g = GraphBuilder(FLOAT)
    pooled = g.input("pooled", FLOAT, ["batch", artifact.n_features])
    return g.build("head", head_outputs(g, artifact, pooled))
