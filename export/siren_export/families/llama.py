"""The Llama family: Llama, Mistral, Qwen2 and Qwen3, from token ids to the tapped states.

    hidden = embed_tokens[input_ids]
    for each block:
        hidden += o_proj(attention(rope(q), rope(k), v))    on input_layernorm(hidden)
        hidden += down_proj(act(gate) * up)                 on post_attention_layernorm(hidden)

Right padding plus causal attention needs no attention mask: a real token never sees a trailing
pad. With a cache, the same blocks read a chunk of new tokens after those that the cache holds.

In float16 these stay in float32: the residual stream, whose massive activations (arXiv
2402.17762) exceed 65504 in some models; the norms, which square it; and the rotary tables'
making. The MLP's product is kept from overflowing by a power of two instead (see `gated_mlp`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import onnx_ir as ir

from siren_export.graph.attention import shorter
from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.embedding import embed_tokens
from siren_export.graph.mlp import gated_mlp
from siren_export.graph.norms import rms_norm
from siren_export.graph.rotary import rotary_tables
from siren_export.graph.self_attention import norm_heads, self_attention
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights
from siren_runtime.errors import CheckpointError

from .base import Decoder
from .keys import check_keys
from .parsing import (
    DecoderConfig,
    Size,
    convert,
    decoder_fields,
    parse_layer_types,
    parse_rope,
)

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, kw_only=True)
class Llama(Decoder):
    """Llama, Mistral, Qwen2 or Qwen3. Biases are flags.

    Attributes:
        embedding_scale, residual_scale, attention_scale: Granite's, of the embedding, of what a
            block adds to the residual stream, and of the scores of attention (None: as in Llama).
        unturned: the blocks without a rope, which SmolLM3 has.
        fused: whether queries, keys and values, and gate and up, are stored as one, as in Phi-3.
        rotary_dim: how many channels of a head turn, the first ones; None: all.
        longest: the longest sequence at which the rope is exact; None: there is no limit.
    """

    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    unturned: frozenset[int] = frozenset()
    fused: bool = False
    rotary_dim: int | None = None
    longest: int | None = None

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens, that the model was made for."""
        return self.longest or self.max_position_embeddings

    def check_max_length(self, max_length: int, origin: str) -> None:
        """As `Backbone.check_max_length`: the rope may change with the length of a text."""
        if self.longest is not None and max_length > self.longest:
            raise CheckpointError(
                f"{origin}: the head's max_length {max_length} exceeds "
                f"original_max_position_embeddings {self.longest}, beyond which longrope turns "
                "all tokens otherwise; lower inference.max_length in the artifact"
            )

    def author(
        self,
        g: GraphBuilder,
        weights: BackboneWeights,
        input_ids: ir.Value,
        attention_mask: ir.Value | None,
        taps: Taps,
        max_length: int,
        cache: KeyValueCache | None = None,
    ) -> dict[int, ir.Value]:
        """As `Backbone.author`; the mask is not looked at."""
        weights.check_prefix(*self.prefixes)
        table = (self.vocab_size, self.hidden_size)
        hidden = embed_tokens(g, weights, input_ids, table, tied=self.tied_embeddings)
        hidden = _scaled(g, hidden, self.embedding_scale)
        arguments = input_ids, max_length, cache, self.rotary_dim
        rotary = rotary_tables(g, self.rope, self.head_dim, *arguments)
        windows = shorter(self.windows, max_length)
        norm = partial(rms_norm, g, weights, size=self.hidden_size, epsilon=self.rms_norm_eps)

        states: dict[int, ir.Value] = {}
        for block in range(taps.deepest + 1):
            with g.scope(f"layers.{block}"):
                x = norm(hidden, f"layers.{block}.input_layernorm")
                x = self_attention(
                    g,
                    weights,
                    g.to_compute(x),
                    block,
                    hidden_size=self.hidden_size,
                    heads=self.attention_heads,
                    kv_heads=self.kv_heads,
                    head_dim=self.head_dim,
                    rotary=None if block in self.unturned else rotary,
                    qkv_bias=self.qkv_bias,
                    output_bias=self.output_bias,
                    fused=self.fused,
                    norm=partial(_head_norm, g, self, weights, block) if self.qk_norm else None,
                    cache=cache,
                    window=windows.get(block),
                    scale=self.attention_scale,
                )
                x = _scaled(g, g.to_float(x), self.residual_scale)
                hidden = g.op("Add", hidden, x, name="attention_residual")

                x = norm(hidden, f"layers.{block}.post_attention_layernorm")
                mlp = _mlp(g, self, weights, g.to_compute(x), block)
                if taps.reads_mlp(block):
                    states[block] = mlp
                    if block == taps.deepest:
                        break
                x = _scaled(g, mlp, self.residual_scale)
                hidden = g.op("Add", hidden, x, name="mlp_residual")
            if taps.reads_residual(block):
                last = taps.final_norm and block == self.blocks - 1
                states[block] = norm(hidden, "norm") if last else hidden
        return states


def _scaled(g: GraphBuilder, x: ir.Value, scale: float) -> ir.Value:
    return x if scale == 1.0 else g.op("Mul", x, g.const(scale, FLOAT), name="scaled")


def _head_norm(
    g: GraphBuilder, config: Llama, weights: BackboneWeights, block: int, part: str, y: ir.Value
) -> ir.Value:
    """RMSNorm over the channels of each head of queries or keys."""
    name = f"layers.{block}.self_attn.{part}_norm"
    heads = config.attention_heads if part == "q" else config.kv_heads
    epsilon = config.rms_norm_eps
    norm = partial(rms_norm, g, weights, name=name, size=config.head_dim, epsilon=epsilon)
    return norm_heads(g, y, heads, config.head_dim, norm)


def _mlp(
    g: GraphBuilder, config: Llama, weights: BackboneWeights, x: ir.Value, block: int
) -> ir.Value:
    """x [batch, sequence, hidden] in the compute dtype to float32 of that shape."""
    return gated_mlp(
        g,
        weights,
        f"layers.{block}.mlp",
        x,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        hidden_act=config.hidden_act,
        bias=config.mlp_bias,
        fused="gate_up_proj" if config.fused else None,
    )


class _Config(DecoderConfig, kw_only=True):
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Size | None = 4096
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: list[str] | None = None
    max_position_embeddings: Size = 2048
    original_max_position_embeddings: Size | msgspec.UnsetType = msgspec.UNSET


class _Mistral(_Config, kw_only=True):
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131_072


class _Qwen(_Config, kw_only=True):
    num_key_value_heads: Size | None = 32
    max_position_embeddings: Size = 32_768


_CONFIGS = {"llama": _Config, "mistral": _Mistral, "qwen2": _Qwen, "qwen3": _Qwen}
# Left in config.json by the tools that some published decoders came from; transformers has none
# of them. `max_sequence_length` is what Llama 1 calls its context.
_HARMLESS = frozenset({"max_sequence_length"})
_FIXED = {
    "is_causal": (True,),
    "partial_rotary_factor": (1.0, None),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
}


def parse(config: Mapping[str, Any], origin: str) -> Llama:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    kind = _CONFIGS[config["model_type"]]
    check_keys(config, kind, origin, harmless=_HARMLESS, fixed=_FIXED)
    raw = convert(config, kind, origin)
    _check_layer_types(raw, origin)
    qwen3 = raw.model_type == "qwen3"
    original = raw.original_max_position_embeddings
    # Mistral has no attention biases and Qwen2 always q/k/v ones, whatever config.json says.
    flag = raw.attention_bias and raw.model_type in ("llama", "qwen3")
    return Llama(
        **decoder_fields(raw, origin, default_head_dim=128 if qwen3 else None),
        rope=parse_rope(
            raw,
            origin,
            original_max_position_embeddings=None if original is msgspec.UNSET else original,
        ),
        qkv_bias=flag or raw.model_type == "qwen2",
        output_bias=flag,
        mlp_bias=raw.mlp_bias and raw.model_type == "llama",
        qk_norm=qwen3,
        windows=_windows(raw),
    )


def _check_layer_types(raw: _Config, origin: str) -> None:
    """Refuse layers of kinds that the model does not have, or that contradict its window."""
    window = raw.sliding_window
    if raw.model_type == "mistral" and raw.layer_types is not None and window is not None:
        raise CheckpointError(
            f"{origin}: layer_types beside sliding_window makes another model of a Mistral in "
            "transformers (Ministral), which is not supported; remove one of them"
        )
    slides = raw.model_type in ("qwen2", "qwen3") and raw.use_sliding_window
    slides = slides and window is not None
    allowed = ("full_attention", "sliding_attention")[: 1 + slides]
    parse_layer_types(raw.layer_types, allowed, raw.num_hidden_layers, origin)


def _windows(raw: _Config) -> dict[int, int]:
    """The attention windows of the blocks that have one."""
    window = raw.sliding_window
    blocks = range(raw.num_hidden_layers)
    if raw.model_type == "llama" or window is None:
        return {}
    if raw.model_type == "mistral":
        return dict.fromkeys(blocks, window)
    if not raw.use_sliding_window:
        return {}
    if raw.layer_types is None:
        return dict.fromkeys(blocks[max(raw.max_window_layers, 0) :], window)
    kinds = enumerate(raw.layer_types)
    return {block: window for block, kind in kinds if kind == "sliding_attention"}
