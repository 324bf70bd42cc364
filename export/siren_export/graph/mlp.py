"""The MLP of a block: gated (arXiv 2002.05202), or dense as in BERT (arXiv 1810.04805).

gated    down(act(gate(x)) * up(x))
dense    output(act(intermediate(x)))
"""

from functools import partial

import onnx_ir as ir

from .activations import activation
from .builder import FLOAT, GraphBuilder
from .linear import linear
from .weights import BackboneWeights, Rows

# The largest |activation| a float16 MLP can hold is raised 16-fold by scaling up_proj down.
# Scaling by a power of two is exact, but for weights under 2^-10, whose error stays below 2^-28.
_FLOAT16_HEADROOM = 2.0**-4


def gated_mlp(
    g: GraphBuilder,
    weights: BackboneWeights,
    prefix: str,
    x: ir.Value,
    *,
    hidden_size: int,
    intermediate_size: int,
    hidden_act: str,
    bias: bool,
    fused: str | None = None,
    down: str = "down_proj",
) -> ir.Value:
    """x [batch, sequence, hidden] in the compute dtype to float32 of that shape.

    In float16, up_proj is scaled by a power of two and the result scaled back in float32, so
    that neither the product nor down_proj's output overflows where the unscaled ones would.

    Args:
        prefix: of the names `gate_proj`, `up_proj` and `down_proj` among the weights.
        bias: whether each has one.
        fused: the name of the matrix that holds those of gate_proj and, below, of up_proj.
        down: the name of down_proj.
    """
    headroom = _FLOAT16_HEADROOM if g.compute == ir.DataType.FLOAT16 else 1.0
    wide = (intermediate_size, hidden_size)

    with g.scope("mlp"):
        gate, up = (
            partial(
                linear,
                name=f"{prefix}.{fused or label}",
                shape=wide,
                bias=bias,
                label=label,
                rows=Rows(start, 2 * intermediate_size) if fused else None,
            )
            for label, start in (("gate_proj", 0), ("up_proj", intermediate_size))
        )
        activated = activation(g, hidden_act, gate(g, weights, x, role="mlp_gate"))
        y = g.op("Mul", activated, up(g, weights, x, role="mlp_up", scale=headroom))
        y = linear(
            g,
            weights,
            y,
            f"{prefix}.{down}",
            wide[::-1],
            "mlp_down",
            bias=False,
            label="down_proj",
        )
        y = g.to_float(y)
        if headroom != 1.0:
            y = g.op("Mul", y, g.const(1.0 / headroom, FLOAT))
        if bias:  # in float32, once scaled back
            vector = weights.vector(f"{prefix}.{down}.bias", hidden_size, FLOAT)
            y = g.op("Add", y, g.weight("down_proj/bias", vector))
        return y


def dense_mlp(
    g: GraphBuilder,
    weights: BackboneWeights,
    prefix: str,
    x: ir.Value,
    *,
    hidden_size: int,
    intermediate_size: int,
    hidden_act: str,
) -> ir.Value:
    """x [batch, sequence, hidden] in the compute dtype to float32 of that shape.

    Args:
        prefix: of the names `intermediate.dense` and `output.dense` among the weights.
    """
    wide = (intermediate_size, hidden_size)
    with g.scope("mlp"):
        name = f"{prefix}.intermediate.dense"
        y = linear(g, weights, x, name, wide, "mlp_up", bias=True, label="intermediate")
        y = activation(g, hidden_act, y)
        name = f"{prefix}.output.dense"
        y = linear(g, weights, y, name, wide[::-1], "mlp_down", bias=True, label="output")
    return g.to_float(y)
