"""Attention of grouped heads, causal or not; over a whole text, or behind a cache."""

import onnx_ir as ir

from .builder import GraphBuilder
from .cache import KeyValueCache


def causal_attention(
    g: GraphBuilder,
    block: int,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    cache: KeyValueCache | None = None,
) -> ir.Value:
    """Grouped-query causal attention (arXiv 2305.13245); with a cache, behind what it holds.

    Right padding needs no mask here: a real token never sees a trailing pad.

    Args:
        q: [batch, sequence, heads * head_dim], rotated.
        k, v: [batch, sequence, kv_heads * head_dim]; k rotated.

    Returns:
        [batch, sequence, heads * head_dim].
    """
    if cache is not None:
        return cache.attend(g, block, q, k, v)
    return g.op(
        "Attention",
        q,
        k,
        v,
        is_causal=1,
        scale=head_dim**-0.5,
        q_num_heads=heads,
        kv_num_heads=kv_heads,
    )


def bidirectional_attention(
    g: GraphBuilder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    visible: ir.Value,
    *,
    heads: int,
    head_dim: int,
) -> ir.Value:
    """Attention of every query to every visible key.

    Args:
        q, k, v: [batch, sequence, heads * head_dim].
        visible: of `visible_keys`.

    Returns:
        [batch, sequence, heads * head_dim].
    """
    return g.op(
        "Attention",
        q,
        k,
        v,
        visible,
        scale=head_dim**-0.5,
        q_num_heads=heads,
        kv_num_heads=heads,
    )


def visible_keys(g: GraphBuilder, attention_mask: ir.Value) -> ir.Value:
    """bool [batch, 1, sequence, sequence]: every query sees the real tokens.

    ONNX Runtime's Attention repeats a mask over heads, but not over queries.

    Args:
        attention_mask: int64 [batch, sequence], 1 for real tokens.
    """
    with g.scope("visible_keys"):
        shape = g.op("Shape", attention_mask)
        batch = g.op("Gather", shape, g.const([0]))
        length = g.op("Gather", shape, g.const([1]))
        keys = g.op("Unsqueeze", g.cast(attention_mask, ir.DataType.BOOL), g.const([1, 2]))
        return g.op("Expand", keys, g.op("Concat", batch, g.const([1]), length, length, axis=0))
