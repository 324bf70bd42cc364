"""Norms, in float32 at every precision: in float16 they square what only just fits."""

import onnx_ir as ir

from .builder import FLOAT, GraphBuilder
from .weights import BackboneWeights


def rms_norm(
    g: GraphBuilder,
    weights: BackboneWeights,
    x: ir.Value,
    name: str,
    size: int,
    epsilon: float,
    *,
    offset: float = 0.0,
) -> ir.Value:
    """RMSNorm (arXiv 1910.07467) over the last axis, by `name`.weight plus `offset`.

    Args:
        x: float32 [..., size].
        name: its last part is the scope of its nodes and of its weight.
    """
    weight = weights.vector(f"{name}.weight", size, FLOAT, offset=offset)
    with g.scope(name.rpartition(".")[2]):
        return g.op("RMSNormalization", x, g.weight("weight", weight), epsilon=epsilon, axis=-1)


def layer_norm(
    g: GraphBuilder,
    weights: BackboneWeights,
    x: ir.Value,
    name: str,
    size: int,
    epsilon: float,
    *,
    bias: bool = True,
) -> ir.Value:
    """LayerNorm (arXiv 1607.06450) over the last axis, by `name`.weight and `name`.bias.

    Args:
        x: float32 [..., size].
        name: its last part is the scope of its nodes and of its weights.
        bias: whether there is one.
    """
    labels = ("weight", "bias") if bias else ("weight",)
    vectors = {label: weights.vector(f"{name}.{label}", size, FLOAT) for label in labels}
    with g.scope(name.rpartition(".")[2]):
        parts = [g.weight(label, vector) for label, vector in vectors.items()]
        return g.op("LayerNormalization", x, *parts, epsilon=epsilon, axis=-1)
