"""A linear of a checkpoint: its matrix and its bias, found by one name."""

import onnx_ir as ir

from .builder import GraphBuilder
from .roles import Role
from .weights import BackboneWeights, Rows


def linear(
    g: GraphBuilder,
    weights: BackboneWeights,
    x: ir.Value,
    name: str,
    shape: tuple[int, int],
    role: Role,
    *,
    bias: bool,
    scale: float = 1.0,
    label: str | None = None,
    rows: Rows | None = None,
) -> ir.Value:
    """x [..., in] times `name`.weight, plus `name`.bias, both of the compute dtype.

    Args:
        shape: of the matrix in the checkpoint's order, [out, in].
        role: what the matrix does in its block.
        bias: whether there is one.
        scale: of matrix and bias.
        label: its scope in the graph; by default the last part of the name.
        rows: where it lies, if what is stored under the name holds several.
    """
    matrix = weights.matrix(f"{name}.weight", shape, g.compute, scale, rows)
    vector = None
    if bias:
        vector = weights.vector(f"{name}.bias", shape[0], g.compute, scale, rows=rows)
    return g.linear(x, label or name.rpartition(".")[2], matrix, vector, role=role)
