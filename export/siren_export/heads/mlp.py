"""Pooling and the SIREN head (arXiv 2604.18519), in float32 at every precision.

pooled[l]  = mean over real tokens of states[l], the selected channels
features   = concat over l of layer_weight[l] * pooled[l]
score      = softmax(mlp(features))[harmful]
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_export.graph.weights import computed
from siren_export.sources.artifact import Artifact, Linear
from siren_runtime.bundle.heads import HARMFUL


def author_pooling(
    g: GraphBuilder, artifact: Artifact, states: Mapping[int, ir.Value], attention_mask: ir.Value
) -> ir.Value:
    """Mean over real tokens of the selected channels, concatenated.

    Args:
        states: block -> float32 [batch, sequence, hidden].
        attention_mask: int64 [batch, sequence], 1 for real tokens.

    Returns:
        float32 [batch, n_features], not yet weighted by layer.
    """
    with g.scope("pooling"):
        mask = g.cast(attention_mask, FLOAT)
        tokens = g.op("ReduceSum", mask, g.const([1]), name="tokens", keepdims=1)
        row = g.op("Unsqueeze", mask, g.const([1]))  # [batch, 1, sequence]
        sums = []
        for selection in artifact.layers:
            with g.scope(f"layers.{selection.layer}"):
                total = g.op("MatMul", row, states[selection.layer], name="sum")
                channels = g.table("channels", selection.channels)
                sums.append(g.op("Gather", total, channels, axis=2))
        features = g.op("Concat", *sums, axis=2)
        features = g.op("Squeeze", features, g.const([1]))
        return g.op("Div", features, tokens, name="mean")


def author_running_pooling(
    g: GraphBuilder,
    artifact: Artifact,
    states: Mapping[int, ir.Value],
    feature_sum: ir.Value,
    feature_count: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """The mean over each prefix of a chunk, what was summed before it included.

    Args:
        states: block -> float32 [batch, chunk, hidden].
        feature_sum: float32 [batch, n_features], over the tokens before the chunk.
        feature_count: int64 [batch], how many tokens those are.

    Returns:
        The sums and the means, float32 [batch, chunk, n_features], not yet weighted by layer.
    """
    with g.scope("pooling"):
        chosen = []
        for selection in artifact.layers:
            with g.scope(f"layers.{selection.layer}"):
                channels = g.table("channels", selection.channels)
                chosen.append(g.op("Gather", states[selection.layer], channels, axis=2))
        features = g.op("Concat", *chosen, axis=2)
        before = g.op("Unsqueeze", feature_sum, g.const([1]))
        sums = g.op("Add", g.op("CumSum", features, g.const(1)), before, name="sums")
        length = g.op("Gather", g.op("Shape", features), g.const(1))
        counts = g.op("Range", g.const(1), g.op("Add", length, g.const(1)), g.const(1))
        counts = g.op("Add", g.op("Unsqueeze", feature_count, g.const([1])), counts)
        counts = g.op("Unsqueeze", g.cast(counts, FLOAT), g.const([2]))  # [batch, chunk, 1]
        return sums, g.op("Div", sums, counts, name="means")


def author_features(g: GraphBuilder, artifact: Artifact, pooled: ir.Value) -> ir.Value:
    """The pooled channels as the head's own runtime has them: layer-weighted, of their shape."""
    with g.scope("head"):
        return g.op("Mul", pooled, g.table("layer_weights", _layer_weights(artifact)))


def author_head(g: GraphBuilder, artifact: Artifact, pooled: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The MLP over the pooled channels, the layer weights folded into its first matrix.

    Returns:
        score float32 [batch] and logits float32 [batch, classes].
    """
    with g.scope("head"):
        x = pooled
        for i, linear in enumerate(artifact.head):
            if i > 0:
                x = g.op("Relu", x)
            scale = _layer_weights(artifact) if i == 0 else np.float32(1)
            matrix = computed(FLOAT, linear.weight.shape[::-1], partial(_scaled, linear, scale))
            with g.scope(f"linear.{i}"):
                x = g.op("Gemm", x, g.weight("weight", matrix), g.table("bias", linear.bias))
        probabilities = g.op("Softmax", x, axis=-1)
        return g.op("Gather", probabilities, g.const(HARMFUL), axis=1), x


def _scaled(linear: Linear, scale: np.ndarray | np.float32) -> np.ndarray:
    """The matrix of a layer times the scale of each input, float32 [in, out]."""
    return np.ascontiguousarray((linear.weight * scale).T)


def _layer_weights(artifact: Artifact) -> np.ndarray:
    """The weight of each feature's layer, float32 [n_features]."""
    return np.concatenate(
        [np.full(len(s.channels), s.weight, dtype=np.float32) for s in artifact.layers]
    )
