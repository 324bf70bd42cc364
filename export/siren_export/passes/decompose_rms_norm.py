"""RMSNormalization (opset 23) in primitive operators: x / sqrt(mean(x^2) + epsilon) * weight."""

import onnx_ir as ir

from siren_export.graph.builder import GuardGraph

from .edit import before, nodes_of, replace


def decompose_rms_norm(graph: GuardGraph) -> None:
    """Rewrite every RMSNormalization, each of which is float32 and over the last axis."""
    for node in nodes_of(graph.model.graph, "RMSNormalization"):
        r = before(graph, node)
        x, weight = node.inputs
        epsilon = r.const(node.attributes["epsilon"].as_float(), ir.DataType.FLOAT)
        squares = r.op("ReduceMean", r.op("Mul", x, x), r.const([-1]), keepdims=1)
        size = r.op("Sqrt", r.op("Add", squares, epsilon))
        replace(graph, [node], r.op("Mul", r.op("Div", x, size), weight))
