"""Attention of grouped heads, causal or not; over a whole text, or behind a cache.

softmax(scale * q @ k) @ v          scores are cap * tanh(scores / cap) where there is a cap
"""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from .builder import GraphBuilder
from .cache import KeyValueCache

HEAD_DIM = "head_dim"  # of causal Attention, in its node's `meta`: passes go by it


def shorter(windows: Mapping[int, int], max_length: int) -> dict[int, int]:
    """Those of the blocks' windows that hide a token of a sequence of `max_length`."""
    return {block: window for block, window in windows.items() if window < max_length}


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
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> ir.Value:
    """Grouped-query causal attention (arXiv 2305.13245); with a cache, behind what it holds.

    Right padding needs no mask here: a real token never sees a trailing pad.

    Args:
        q: [batch, sequence, heads * head_dim], rotated.
        k, v: [batch, sequence, kv_heads * head_dim]; k rotated.
        window: the tokens that a token sees, itself included; None: all before it.
        scale: of the scores, by default head_dim ** -0.5.
        softcap: what the scaled scores are bent to stay below (arXiv 2408.00118); None: nothing.

    Returns:
        [batch, sequence, heads * head_dim].
    """
    scale = head_dim**-0.5 if scale is None else scale
    if cache is not None:
        return cache.attend(g, block, q, k, v, window=window, scale=scale, softcap=softcap)
    attributes: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": kv_heads}
    if softcap is not None:
        attributes["softcap"] = softcap
    if window is None:
        y = g.op("Attention", q, k, v, is_causal=1, scale=scale, **attributes)
        producer = y.producer()
        assert producer is not None
        producer.meta[HEAD_DIM] = head_dim
        return y
    visible = _visible_window(g, q, window)
    return g.op("Attention", q, k, v, visible, scale=scale, **attributes)


def _visible_window(g: GraphBuilder, q: ir.Value, window: int) -> ir.Value:
    """bool [sequence, sequence]: a token sees itself and the `window` - 1 before it."""

    def author() -> ir.Value:
        length = g.op("Gather", g.op("Shape", q), g.const(1))
        keys = g.op("Range", g.const(0), length, g.const(1))
        back = g.op("Sub", g.op("Unsqueeze", keys, g.const([1])), keys)
        seen = g.op("Less", back, g.const(window))
        return g.op("And", seen, g.op("GreaterOrEqual", back, g.const(0)))

    return g.once(f"window_{window}", author)


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
        visible: of `visible_keys` or `visible_neighbours`.

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


def visible_neighbours(g: GraphBuilder, visible: ir.Value, window: int) -> ir.Value:
    """bool [batch, 1, sequence, sequence]: what is visible and within `window` tokens either way.

    Padding sees itself, so that no row is without a key: its softmax would not be finite.

    Args:
        visible: of `visible_keys`.
    """
    with g.scope(f"window_{window}"):
        length = g.op("Gather", g.op("Shape", visible), g.const(3))
        keys = g.op("Range", g.const(0), length, g.const(1))
        distance = g.op("Abs", g.op("Sub", g.op("Unsqueeze", keys, g.const([1])), keys))
        near = g.op("LessOrEqual", distance, g.const(window))
        return g.op("Or", g.op("And", visible, near), g.op("Equal", distance, g.const(0)))
