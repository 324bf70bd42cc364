"""The self-attention of decoders: o_proj(attention(rope(q), rope(k), v)) of projections of x."""

from collections.abc import Callable

import onnx_ir as ir

from .attention import causal_attention
from .builder import GraphBuilder
from .cache import KeyValueCache
from .linear import linear
from .roles import Role
from .rotary import Rotary
from .weights import BackboneWeights, Rows


def self_attention(
    g: GraphBuilder,
    weights: BackboneWeights,
    x: ir.Value,
    block: int,
    *,
    hidden_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary: Rotary | None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    fused: bool = False,
    norm: Callable[[str, ir.Value], ir.Value] | None = None,
    cache: KeyValueCache | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> ir.Value:
    """Author `layers.{block}.self_attn`: x [batch, sequence, hidden] to the same shape.

    Args:
        rotary: None where the block's queries and keys are not turned.
        fused: whether q_proj, k_proj and v_proj are stored as one, qkv_proj, in this order.
        norm: of "q" and "k" [batch, sequence, heads * head_dim], before they are turned.
        cache, window, scale, softcap: as in `causal_attention`.
    """
    prefix = f"layers.{block}.self_attn"

    def project(part: str, count: int, role: Role) -> ir.Value:
        name, rows = f"{prefix}.{part}_proj", None
        if fused:
            start = {"q": 0, "k": heads, "v": heads + kv_heads}[part]
            name = f"{prefix}.qkv_proj"
            rows = Rows(start * head_dim, (heads + 2 * kv_heads) * head_dim)
        return linear(
            g,
            weights,
            x,
            name,
            (count * head_dim, hidden_size),
            role,
            bias=qkv_bias,
            label=f"{part}_proj",
            rows=rows,
        )

    def turned(part: str, count: int, role: Role) -> ir.Value:
        y = project(part, count, role)
        y = y if norm is None else norm(part, y)
        return y if rotary is None else rotary.rotate(g, y, count)

    with g.scope("self_attn"):
        q = turned("q", heads, "query")
        k = turned("k", kv_heads, "key")
        v = project("v", kv_heads, "value")
        y = causal_attention(
            g,
            block,
            q,
            k,
            v,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            cache=cache,
            window=window,
            scale=scale,
            softcap=softcap,
        )
        shape = (hidden_size, heads * head_dim)
        return linear(
            g, weights, y, f"{prefix}.o_proj", shape, "attention_output", bias=output_bias
        )


def norm_heads(
    g: GraphBuilder, y: ir.Value, heads: int, head_dim: int, norm: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """Apply a float32 `norm` of head_dim channels to each head of y, in the compute dtype.

    Args:
        y: [batch, sequence, heads * head_dim].
    """
    y = g.op("Reshape", y, g.const([0, 0, heads, head_dim]))
    return g.op("Reshape", g.to_compute(norm(g.to_float(y))), g.const([0, 0, -1]))
