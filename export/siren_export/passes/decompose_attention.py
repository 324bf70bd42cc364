"""Attention (opset 23) in primitive operators: softmax(q k^T * scale + mask) v, per head.

For TensorRT, whose Attention has no float32 kernel, and before 10.14 does not exist at all; and
for scores that are capped, cap * tanh(q k^T * scale / cap) + mask, at every target: revisions of
the standard differ in whether the mask comes before the cap, which would let a token see all.
"""

import onnx_ir as ir

from siren_export.graph.builder import GuardGraph

from .edit import Place, attentions, before, replace

_KNOWN = frozenset({"softcap"})


def decompose_attention(graph: GuardGraph) -> None:
    """Rewrite every Attention that is causal, or has a bool mask of visible keys."""
    _decompose(graph, attentions(graph, _KNOWN))


def decompose_softcap(graph: GuardGraph) -> None:
    """Rewrite those alone whose scores are capped."""
    nodes = attentions(graph, _KNOWN)
    _decompose(graph, [node for node in nodes if "softcap" in node.attributes])


def _decompose(graph: GuardGraph, nodes: list[ir.Node]) -> None:
    compute = graph.compute
    biases: dict[ir.Value | None, ir.Value] = {}  # one for each mask; None: the causal one
    for node in nodes:
        r = before(graph, node)
        queries, keys, values = node.inputs[:3]
        visible = node.inputs[3] if len(node.inputs) > 3 else None
        heads = node.attributes["q_num_heads"].as_int()
        kv_heads = node.attributes["kv_num_heads"].as_int()
        if visible not in biases:
            shown = visible or _causal(r, queries)
            lowest = float(compute.min)
            biases[visible] = r.op("Where", shown, r.const(0.0, compute), r.const(lowest, compute))
        q = _split_heads(r, queries, heads, heads, [0, 2, 1, 3])
        k = _split_heads(r, keys, kv_heads, heads, [0, 2, 3, 1])
        v = _split_heads(r, values, kv_heads, heads, [0, 2, 1, 3])
        q = r.op("Mul", q, r.const(node.attributes["scale"].as_float(), compute))
        scores = r.op("MatMul", q, k)
        if "softcap" in node.attributes:
            cap = r.const(node.attributes["softcap"].as_float(), compute)
            scores = r.op("Mul", r.op("Tanh", r.op("Div", scores, cap)), cap)
        scores = r.op("Add", scores, biases[visible])
        y = r.op("MatMul", r.op("Softmax", scores, axis=-1), v)  # [batch, heads, sequence, dim]
        y = r.op("Transpose", y, perm=[0, 2, 1, 3])
        replace(graph, [node], r.op("Reshape", y, r.const([0, 0, -1])))


def _split_heads(
    r: Place, x: ir.Value | None, heads: int, repeated: int, order: list[int]
) -> ir.Value:
    """[batch, sequence, heads * dim] to 4 axes in `order`, each head `repeated / heads` times."""
    if heads != repeated:  # grouped queries share keys and values
        x = r.op("Reshape", x, r.const([0, 0, heads, 1, -1]))
        x = r.op("Expand", x, r.const([1, 1, 1, repeated // heads, 1]))
    return r.op("Transpose", r.op("Reshape", x, r.const([0, 0, repeated, -1])), perm=order)


def _causal(r: Place, queries: ir.Value | None) -> ir.Value:
    """bool [sequence, sequence]: a token sees itself and those before it."""
    length = r.op("Gather", r.op("Shape", queries), r.const(1))
    positions = r.op("Range", r.const(0), length, r.const(1))
    return r.op(
        "LessOrEqual",
        r.op("Unsqueeze", positions, r.const([0])),
        r.op("Unsqueeze", positions, r.const([1])),
    )
