"""Pooling and the SIREN head (arXiv 2604.18519), in float32 at every precision.

pooled[l]  = mean over real tokens of states[l], the selected channels
features   = concat over l of layer_weight[l] * pooled[l]
score      = softmax(mlp(features))[harmful]
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ..artifact import Artifact
from .builder import FLOAT, GraphBuilder

HARMFUL = 1  # the class whose probability is the score


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


def author_head(g: GraphBuilder, artifact: Artifact, pooled: ir.Value) -> dict[str, ir.Value]:
    """The MLP over the pooled channels, the layer weights folded into its first matrix.

    Returns:
        "score" float32 [batch], "logits" float32 [batch, classes], and "features" float32
        [batch, n_features], which are layer-weighted as the head's own runtime has them.
    """
    scale = np.concatenate(
        [np.full(len(s.channels), s.weight, dtype=np.float32) for s in artifact.layers]
    )
    with g.scope("head"):
        features = g.op("Mul", pooled, g.table("layer_weights", scale))
        x = pooled
        for i, linear in enumerate(artifact.head):
            if i > 0:
                x = g.op("Relu", x)
            matrix = linear.weight * scale if i == 0 else linear.weight
            with g.scope(f"linear.{i}"):
                x = g.op(
                    "Gemm",
                    x,
                    g.table("weight", np.ascontiguousarray(matrix.T)),
                    g.table("bias", linear.bias),
                )
        probabilities = g.op("Softmax", x, axis=-1)
        score = g.op("Gather", probabilities, g.const(HARMFUL), axis=1)
    return {"score": score, "logits": x, "features": features}
