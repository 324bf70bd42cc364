"""Attention over long texts by ONNX Runtime's own operators, chosen as the graph runs.

    If(sequence >= 256 [and no token is padding], fused operator, Attention)

The standard Attention computes all scores, the masked half too, and writes them to memory.
Milliseconds of one thread for one layer:

    tokens                                     8      32     128    512
    Attention, causal, 16 heads of 128         0.04   0.16   1.8    29
    GroupQueryAttention                        0.05   0.20   2.2    21
    Attention with a mask, 12 heads of 32      0.02   0.05   0.47   7.8
    MultiHeadAttention, no mask (its flash)    0.03   0.06   0.48   6.3
    MultiHeadAttention with a mask             0.03   0.08   0.57   7.4

So short texts, and encoders' padded batches, keep Attention. Heads of a width that
GroupQueryAttention does not take keep it at every length, and so do float32 and float16: they run
on other providers too, whose operators have other limits.
"""

import onnx_ir as ir

from siren_export.graph.attention import HEAD_DIM
from siren_export.graph.builder import GuardGraph

from .edit import CONTRIB, attentions, before, replace

_INT32 = ir.DataType.INT32
_WIDTH = 8  # GroupQueryAttention takes heads of whole eights of channels


def fuse_long_attention(graph: GuardGraph, long: int = 256) -> None:
    """Put a choice between two operators in the place of every Attention, in float32.

    Args:
        long: tokens, padding included, from which the fused one is taken.
    """
    # In a decoder, one with a mask looks through a window, which the fused operator would drop;
    # those whose scores are capped are primitive operators by now.
    nodes = [
        node
        for node in attentions(graph)
        if _is_causal(node) == graph.causal
        and (not graph.causal or node.meta[HEAD_DIM] % _WIDTH == 0)
    ]
    if not nodes:
        return
    first = before(graph, nodes[0], f"{nodes[0].name}/long")
    shape = first.op("Shape", nodes[0].inputs[0])
    tokens = first.op("Gather", shape, first.const(1))
    fuse = first.op("GreaterOrEqual", tokens, first.const(long))
    if graph.causal:
        batch = first.op("Gather", shape, first.const([0]))
        total = first.op("Cast", tokens, to=int(_INT32))
        last = first.op("Sub", total, first.const(1, _INT32))
        lasts = first.op("Expand", last, batch)  # padding is seen by padding only
        for node in nodes:
            _choose(graph, node, fuse, _grouped(node, lasts, total))
        return
    of_mask: dict[ir.Value | None, ir.Value] = {}
    for node in nodes:
        visible = node.inputs[3]
        if visible not in of_mask:
            r = first if not of_mask else before(graph, node, f"{node.name}/long")
            least = r.op("ReduceMin", r.op("Cast", visible, to=int(_INT32)), keepdims=0)
            of_mask[visible] = r.op("And", fuse, r.op("Cast", least, to=int(ir.DataType.BOOL)))
        _choose(graph, node, of_mask[visible], _multi_head(node))


def _is_causal(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("is_causal", 0))


def _grouped(node: ir.Node, lasts: ir.Value, total: ir.Value) -> ir.Node:
    """Causal attention: the last token's index in each row int32 [batch], and all tokens."""
    attributes = {
        "num_heads": node.attributes.get_int("q_num_heads"),
        "kv_num_heads": node.attributes.get_int("kv_num_heads"),
        "scale": node.attributes.get_float("scale"),
    }
    outputs = [ir.val(f"{node.name}/long{suffix}") for suffix in ("", ":1", ":2")]
    return ir.node(
        "GroupQueryAttention",
        [*node.inputs[:3], None, None, lasts, total],
        attributes,
        domain=CONTRIB,
        outputs=outputs,
        name=f"{node.name}/long",
    )


def _multi_head(node: ir.Node) -> ir.Node:
    """Attention in which every token sees every token."""
    attributes = {
        "num_heads": node.attributes.get_int("q_num_heads"),
        "scale": node.attributes.get_float("scale"),
    }
    return ir.node(
        "MultiHeadAttention",
        node.inputs[:3],
        attributes,
        domain=CONTRIB,
        outputs=[ir.val(f"{node.name}/long")],
        name=f"{node.name}/long",
    )


def _choose(graph: GuardGraph, node: ir.Node, fuse: ir.Value, fused: ir.Node) -> None:
    plain = ir.node(
        "Attention",
        node.inputs,
        dict(node.attributes),
        outputs=[ir.val(f"{node.name}/short")],
        name=f"{node.name}/short",
    )
    choice = before(graph, node).op(
        "If",
        fuse,
        name=f"{node.name}/choice",
        then_branch=ir.Graph([], fused.outputs[:1], nodes=[fused], name=fused.name),
        else_branch=ir.Graph([], plain.outputs, nodes=[plain], name=plain.name),
    )
    replace(graph, [node], choice)
