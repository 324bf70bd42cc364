"""The decoder family: Llama, Mistral, Qwen2 and Qwen3, from token ids to the tapped states.

    hidden = embed_tokens[input_ids]
    for each block:
        hidden += o_proj(attention(rope(q), rope(k), v))    on input_layernorm(hidden)
        hidden += down_proj(act(gate) * up)                 on post_attention_layernorm(hidden)

Right padding plus causal attention needs no attention mask: a real token never sees a trailing
pad. With a cache, the same blocks read a chunk of new tokens after those that the cache holds.

In float16 these stay in float32: the residual stream, whose massive activations (arXiv
2402.17762) exceed 65504 in some models; the norms, which square it; and the rotary tables'
making. The MLP's product is kept from overflowing by a power of two instead (see `_mlp`).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from siren_export.graph.activations import activation
from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.taps import Taps
from siren_export.graph.weights import CheckpointWeights, Weight, computed

from .config import DecoderConfig, Rope

# The largest |activation| a float16 MLP can hold is raised 16-fold by scaling up_proj down.
# Scaling by a power of two is exact, but for weights under 2^-10, whose error stays below 2^-28.
_FLOAT16_HEADROOM = 2.0**-4


@dataclass(frozen=True)
class _Rotary:
    """The rotary tables [positions, head_dim / 2] and each token's position [batch, sequence]."""

    cos: ir.Value
    sin: ir.Value
    positions: ir.Value


def author_decoder(
    g: GraphBuilder,
    config: DecoderConfig,
    weights: CheckpointWeights,
    input_ids: ir.Value,
    taps: Taps,
    max_length: int,
    cache: KeyValueCache | None = None,
) -> dict[int, ir.Value]:
    """Author the blocks up to the deepest tap.

    Args:
        input_ids: int64 [batch, sequence].
        taps: which blocks are read, and what of them.
        max_length: the longest sequence, in tokens, those in the cache included.
        cache: what the tokens before `input_ids` left, where there are some.

    Returns:
        block -> tapped float32 states [batch, sequence, hidden].
    """
    embedding = weights.table(
        "embed_tokens.weight", (config.vocab_size, config.hidden_size), g.compute
    )
    hidden = g.op("Gather", g.weight("embed_tokens.weight", embedding), input_ids)
    hidden = g.to_float(hidden)
    rotary = _rotary(g, config, input_ids, max_length, cache)

    states: dict[int, ir.Value] = {}
    for block in range(taps.deepest + 1):
        with g.scope(f"layers.{block}"):
            x = _rms_norm(g, config, weights, hidden, f"layers.{block}.input_layernorm")
            x = _attention(g, config, weights, g.to_compute(x), block, rotary, cache)
            hidden = g.op("Add", hidden, g.to_float(x), name="attention_residual")

            x = _rms_norm(g, config, weights, hidden, f"layers.{block}.post_attention_layernorm")
            mlp = _mlp(g, config, weights, g.to_compute(x), block)
            if taps.reads_mlp(block):
                states[block] = mlp
                if block == taps.deepest:
                    break
            hidden = g.op("Add", hidden, mlp, name="mlp_residual")
        if taps.reads_residual(block):
            last = block == config.blocks - 1
            states[block] = _rms_norm(g, config, weights, hidden, "norm") if last else hidden
    return states


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Rotary angular frequencies, float32 [head_dim / 2].

    RoFormer (arXiv 2104.09864); "linear" divides them by the factor (arXiv 2306.15595); "llama3"
    divides the low ones only and blends in between, as Llama 3.1 was trained.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.asarray(1.0 / np.float32(rope.theta) ** exponents, np.float32)
    if rope.kind == "linear":
        frequencies = frequencies / np.float32(rope.factor)
    elif rope.kind == "llama3":
        turns = rope.original_max_position_embeddings * frequencies / (2 * np.pi)
        span = rope.high_freq_factor - rope.low_freq_factor
        keep = np.clip((turns - rope.low_freq_factor) / span, 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / rope.factor
    return np.asarray(frequencies, np.float32)


def _rotary(
    g: GraphBuilder,
    config: DecoderConfig,
    input_ids: ir.Value,
    max_length: int,
    cache: KeyValueCache | None,
) -> _Rotary:
    # Tables of another length are other weights of the bundle.
    scope = "rotary" if cache is None else "rotary_context"
    frequencies = inverse_frequencies(config.rope, config.head_dim)

    def table(function: np.ufunc) -> Weight:
        def make() -> np.ndarray:
            angles = np.outer(np.arange(max_length, dtype=np.float32), frequencies)
            return np.asarray(function(angles).astype(g.compute.numpy()))

        return computed(g.compute, (max_length, len(frequencies)), make)

    with g.scope(scope):
        if cache is None:
            shape = g.op("Shape", input_ids)
            length = g.op("Gather", shape, g.const(1))
            positions = g.op("Range", g.const(0), length, g.const(1))
            positions = g.op("Expand", positions, shape, name="positions")
        else:
            positions = cache.positions(g, input_ids, max_length)
        return _Rotary(
            cos=g.weight("cos", table(np.cos)),
            sin=g.weight("sin", table(np.sin)),
            positions=positions,
        )


def _attention(
    g: GraphBuilder,
    config: DecoderConfig,
    weights: CheckpointWeights,
    x: ir.Value,
    block: int,
    rotary: _Rotary,
    cache: KeyValueCache | None,
) -> ir.Value:
    """Grouped-query causal attention: x [batch, sequence, hidden] to the same shape."""
    prefix = f"layers.{block}.self_attn"
    heads = {"q": config.attention_heads, "k": config.kv_heads, "v": config.kv_heads}

    def project(part: str) -> ir.Value:
        size = heads[part] * config.head_dim
        name = f"{prefix}.{part}_proj"
        bias = weights.vector(f"{name}.bias", size, g.compute) if config.qkv_bias else None
        matrix = weights.matrix(f"{name}.weight", (size, config.hidden_size), g.compute)
        return g.linear(x, f"{part}_proj", matrix, bias)

    def rotate(part: str, y: ir.Value) -> ir.Value:
        if config.qk_norm:  # over each head's channels
            y = g.op("Reshape", y, g.const([0, 0, heads[part], config.head_dim]))
            y = _rms_norm(g, config, weights, g.to_float(y), f"{prefix}.{part}_norm")
            y = g.op("Reshape", g.to_compute(y), g.const([0, 0, -1]))
        return g.op(
            "RotaryEmbedding", y, rotary.cos, rotary.sin, rotary.positions, num_heads=heads[part]
        )

    with g.scope("self_attn"):
        q, k, v = rotate("q", project("q")), rotate("k", project("k")), project("v")
        if cache is None:
            y = g.op(
                "Attention",
                q,
                k,
                v,
                is_causal=1,
                scale=config.head_dim**-0.5,
                q_num_heads=config.attention_heads,
                kv_num_heads=config.kv_heads,
            )
        else:
            y = cache.attend(g, block, q, k, v)
        name = f"{prefix}.o_proj"
        shape = (config.hidden_size, config.attention_heads * config.head_dim)
        bias = (
            weights.vector(f"{name}.bias", config.hidden_size, g.compute)
            if config.output_bias
            else None
        )
        return g.linear(y, "o_proj", weights.matrix(f"{name}.weight", shape, g.compute), bias)


def _mlp(
    g: GraphBuilder, config: DecoderConfig, weights: CheckpointWeights, x: ir.Value, block: int
) -> ir.Value:
    """The gated MLP: x [batch, sequence, hidden] in the compute dtype to float32 of that shape.

    In float16, up_proj is scaled by a power of two and the result scaled back in float32, so
    that neither the product nor down_proj's output overflows where the unscaled ones would.
    """
    prefix = f"layers.{block}.mlp"
    headroom = _FLOAT16_HEADROOM if g.compute == ir.DataType.FLOAT16 else 1.0
    wide = (config.intermediate_size, config.hidden_size)

    def project(part: str, scale: float = 1.0) -> ir.Value:
        name = f"{prefix}.{part}_proj"
        bias = (
            weights.vector(f"{name}.bias", wide[0], g.compute, scale) if config.mlp_bias else None
        )
        matrix = weights.matrix(f"{name}.weight", wide, g.compute, scale)
        return g.linear(x, f"{part}_proj", matrix, bias)

    with g.scope("mlp"):
        gate = activation(g, config.hidden_act, project("gate"))
        product = g.op("Mul", gate, project("up", headroom))
        down = weights.matrix(f"{prefix}.down_proj.weight", wide[::-1], g.compute)
        y = g.to_float(g.linear(product, "down_proj", down))
        if headroom != 1.0:
            y = g.op("Mul", y, g.const(1.0 / headroom, FLOAT))
        if config.mlp_bias:
            bias = weights.vector(f"{prefix}.down_proj.bias", config.hidden_size, FLOAT)
            y = g.op("Add", y, g.weight("down_proj/bias", bias))
        return y


def _rms_norm(
    g: GraphBuilder, config: DecoderConfig, weights: CheckpointWeights, x: ir.Value, name: str
) -> ir.Value:
    """RMSNorm (arXiv 1910.07467) over the last axis, in float32."""
    size = config.head_dim if name.endswith(("q_norm", "k_norm")) else config.hidden_size
    scale = weights.vector(f"{name}.weight", size, FLOAT)
    with g.scope(name.rpartition(".")[2]):
        return g.op(
            "RMSNormalization", x, g.weight("weight", scale), epsilon=config.rms_norm_eps, axis=-1
        )
