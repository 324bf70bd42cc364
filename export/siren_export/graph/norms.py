"""Norms, in float32 at every precision: in float16 they square what only just fits."""

import onnx_ir as ir

from .builder import GraphBuilder
from .weights import Weight


def rms_norm(g: GraphBuilder, x: ir.Value, name: str, weight: Weight, epsilon: float) -> ir.Value:
    """RMSNorm (arXiv 1910.07467) over the last axis.

    Args:
        x: float32 [..., channels].
        name: the scope of its nodes and of its weight.
        weight: float32 [channels].
    """
    with g.scope(name):
        return g.op("RMSNormalization", x, g.weight("weight", weight), epsilon=epsilon, axis=-1)


def layer_norm(
    g: GraphBuilder, x: ir.Value, name: str, weight: Weight, bias: Weight | None, epsilon: float
) -> ir.Value:
    """LayerNorm (arXiv 1607.06450) over the last axis.

    Args:
        x: float32 [..., channels].
        name: the scope of its nodes and of its weights.
        weight, bias: float32 [channels]; there may be no bias.
    """
    with g.scope(name):
        parts = [g.weight("weight", weight)]
        if bias is not None:
            parts.append(g.weight("bias", bias))
        return g.op("LayerNormalization", x, *parts, epsilon=epsilon, axis=-1)
