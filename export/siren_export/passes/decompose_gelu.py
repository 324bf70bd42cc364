"""Gelu (opset 20) in primitive operators (arXiv 1606.08415), in float32 whatever the graph's.

x (1 + erf(x / sqrt 2)) / 2, or with tanh(sqrt(2 / pi) (x + 0.044715 x^3)) for erf
"""

import math

import onnx_ir as ir

from siren_export.graph.builder import GuardGraph

from .edit import before, nodes_of, replace

_FLOAT = ir.DataType.FLOAT


def decompose_gelu(graph: GuardGraph) -> None:
    """Rewrite every Gelu; 1 + erf would lose most of its digits in 16 bits."""
    compute = graph.compute
    for node in nodes_of(graph.model.graph, "Gelu"):
        r = before(graph, node)
        x = node.inputs[0]
        if compute != _FLOAT:
            x = r.op("Cast", x, to=int(_FLOAT))
        if node.attributes["approximate"].as_string() == "tanh":
            cube = r.op("Mul", r.op("Mul", x, x), x)
            inner = r.op("Add", x, r.op("Mul", cube, r.const(0.044715, _FLOAT)))
            bend = r.op("Tanh", r.op("Mul", inner, r.const(math.sqrt(2 / math.pi), _FLOAT)))
        else:
            bend = r.op("Erf", r.op("Mul", x, r.const(math.sqrt(0.5), _FLOAT)))
        half = r.op("Mul", x, r.const(0.5, _FLOAT))
        y = r.op("Mul", half, r.op("Add", bend, r.const(1.0, _FLOAT)))
        replace(graph, [node], y if compute == _FLOAT else r.op("Cast", y, to=int(compute)))
