"""The gated MLP (arXiv 2002.05202) of decoders: down(act(gate(x)) * up(x))."""

import onnx_ir as ir

from .activations import activation
from .builder import FLOAT, GraphBuilder
from .weights import BackboneWeights

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
) -> ir.Value:
    """x [batch, sequence, hidden] in the compute dtype to float32 of that shape.

    In float16, up_proj is scaled by a power of two and the result scaled back in float32, so
    that neither the product nor down_proj's output overflows where the unscaled ones would.

    Args:
        prefix: of the names `gate_proj`, `up_proj` and `down_proj` among the weights.
        bias: whether each has one.
    """
    headroom = _FLOAT16_HEADROOM if g.compute == ir.DataType.FLOAT16 else 1.0
    wide = (intermediate_size, hidden_size)

    with g.scope("mlp"):
        name = f"{prefix}.gate_proj"
        gate_bias = weights.vector(f"{name}.bias", wide[0], g.compute) if bias else None
        gate_matrix = weights.matrix(f"{name}.weight", wide, g.compute)
        gate = g.linear(x, "gate_proj", gate_matrix, gate_bias, role="mlp_gate")
        gate = activation(g, hidden_act, gate)

        name = f"{prefix}.up_proj"
        up_bias = weights.vector(f"{name}.bias", wide[0], g.compute, headroom) if bias else None
        up_matrix = weights.matrix(f"{name}.weight", wide, g.compute, headroom)
        product = g.op("Mul", gate, g.linear(x, "up_proj", up_matrix, up_bias, role="mlp_up"))

        name = f"{prefix}.down_proj"
        down_matrix = weights.matrix(f"{name}.weight", wide[::-1], g.compute)
        y = g.to_float(g.linear(product, "down_proj", down_matrix, role="mlp_down"))
        if headroom != 1.0:
            y = g.op("Mul", y, g.const(1.0 / headroom, FLOAT))
        if bias:
            down_bias = weights.vector(f"{name}.bias", hidden_size, FLOAT)
            y = g.op("Add", y, g.weight("down_proj/bias", down_bias))
        return y
