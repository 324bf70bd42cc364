"""Gemma 2 (arXiv 2408.00118) and the text part of Gemma 3 (arXiv 2503.19786).

    hidden = embed_tokens[input_ids] * sqrt(hidden_size)
    for each block:
        hidden += post_attention_layernorm(attention)       on input_layernorm(hidden)
        hidden += post_feedforward_layernorm(mlp)           on pre_feedforward_layernorm(hidden)

Every norm multiplies by 1 + weight. Some blocks see all before them, the others a window of it.
Gemma 2 caps the scores of attention; Gemma 3 norms queries and keys instead, and turns them by one
rope in the blocks that see all and by another in those with a window.
"""

from collections.abc import Mapping, Sequence
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
from siren_export.graph.rotary import Rope, Rotary, rotary_tables
from siren_export.graph.self_attention import norm_heads, self_attention
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights
from siren_runtime.errors import CheckpointError

from .base import Decoder
from .keys import check_keys
from .parsing import (
    DecoderConfig,
    PositiveFloat,
    Size,
    convert,
    decoder_fields,
    parse_layer_types,
    parse_rope,
    parse_ropes,
)

MODEL_TYPES = ("gemma2", "gemma3_text")
_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class Gemma(Decoder):
    """Gemma 2 or Gemma 3.

    Attributes:
        window_rope: of the blocks with a window; `rope` is of the others.
        scale: of the scores of attention, which `softcap` then caps where it is not None.
        qk_norm: whether queries and keys are normed.
    """

    window_rope: Rope
    scale: float
    softcap: float | None
    qk_norm: bool
    attention_bias: bool

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
        hidden = g.op("Mul", hidden, g.const(self.hidden_size**0.5, FLOAT), name="embed_scale")
        ropes = _Ropes(g, self, input_ids, max_length, cache)
        windows = shorter(self.windows, max_length)
        norm = partial(_norm, g, self, weights, size=self.hidden_size)

        states: dict[int, ir.Value] = {}
        for block in range(taps.deepest + 1):
            name = f"layers.{block}"
            with g.scope(name):
                x = self_attention(
                    g,
                    weights,
                    g.to_compute(norm(hidden, f"{name}.input_layernorm")),
                    block,
                    hidden_size=self.hidden_size,
                    heads=self.attention_heads,
                    kv_heads=self.kv_heads,
                    head_dim=self.head_dim,
                    rotary=ropes.of(block),
                    qkv_bias=self.attention_bias,
                    output_bias=self.attention_bias,
                    norm=partial(_head_norm, g, self, weights, block) if self.qk_norm else None,
                    cache=cache,
                    window=windows.get(block),
                    scale=self.scale,
                    softcap=self.softcap,
                )
                x = norm(g.to_float(x), f"{name}.post_attention_layernorm")
                hidden = g.op("Add", hidden, x, name="attention_residual")

                x = norm(hidden, f"{name}.pre_feedforward_layernorm")
                mlp = gated_mlp(
                    g,
                    weights,
                    f"{name}.mlp",
                    g.to_compute(x),
                    hidden_size=self.hidden_size,
                    intermediate_size=self.intermediate_size,
                    hidden_act=self.hidden_act,
                    bias=False,
                )
                if taps.reads_mlp(block):
                    states[block] = mlp
                    if block == taps.deepest:
                        break
                x = norm(mlp, f"{name}.post_feedforward_layernorm")
                hidden = g.op("Add", hidden, x, name="mlp_residual")
            if taps.reads_residual(block):
                last = taps.final_norm and block == self.blocks - 1
                states[block] = norm(hidden, "norm") if last else hidden
        return states


@dataclass
class _Ropes:
    """The ropes of a graph under way, each authored where a block first asks for it."""

    g: GraphBuilder
    config: Gemma
    input_ids: ir.Value
    max_length: int
    cache: KeyValueCache | None

    def __post_init__(self) -> None:
        self._made: dict[Rope, Rotary] = {}

    def of(self, block: int) -> Rotary:
        """The rope of a block."""
        config = self.config
        rope = config.window_rope if block in config.windows else config.rope
        if rope not in self._made:
            arguments = self.input_ids, self.max_length, self.cache
            self._made[rope] = rotary_tables(self.g, rope, config.head_dim, *arguments)
        return self._made[rope]


def _head_norm(
    g: GraphBuilder, config: Gemma, weights: BackboneWeights, block: int, part: str, y: ir.Value
) -> ir.Value:
    """RMSNorm over the channels of each head of queries or keys."""
    name = f"layers.{block}.self_attn.{part}_norm"
    heads = config.attention_heads if part == "q" else config.kv_heads
    norm = partial(_norm, g, config, weights, name=name, size=config.head_dim)
    return norm_heads(g, y, heads, config.head_dim, norm)


def _norm(
    g: GraphBuilder, config: Gemma, weights: BackboneWeights, x: ir.Value, name: str, size: int
) -> ir.Value:
    """RMSNorm by 1 + weight."""
    return rms_norm(g, weights, x, name, size, config.rms_norm_eps, offset=1.0)


class _Config(DecoderConfig, kw_only=True):
    vocab_size: Size = 256000
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Size = 26
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    hidden_act: str = msgspec.field(name="hidden_activation", default="gelu_pytorch_tanh")
    attention_bias: bool = False
    query_pre_attn_scalar: PositiveFloat = 256
    attn_logit_softcapping: PositiveFloat | None = 50.0
    sliding_window: Size | None = 4096
    layer_types: list[str] | None = None
    max_position_embeddings: Size = 8192
    tie_word_embeddings: bool = True


class _Config3(_Config, kw_only=True):
    vocab_size: Size = 262208
    attn_logit_softcapping: PositiveFloat | None = None
    max_position_embeddings: Size = 131072
    sliding_window_pattern: Size = 6
    rope_local_base_freq: PositiveFloat | None = None


# What transformers reads for the output's logits and its own cache alone, or not at all: the
# activation is `hidden_activation`.
_HARMLESS = frozenset(
    {"_sliding_window_pattern", "cache_implementation", "final_logit_softcapping", "hidden_act"}
)
_FIXED: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "use_bidirectional_attention": (False, None),
}
# Gemma 3 in transformers takes no cap, whatever config.json says.
_FIXED3: dict[str, tuple[Any, ...]] = {**_FIXED, "attn_logit_softcapping": (None,)}


def parse(config: Mapping[str, Any], origin: str) -> Gemma:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    third = config["model_type"] == "gemma3_text"
    kind, fixed = (_Config3, _FIXED3) if third else (_Config, _FIXED)
    check_keys(config, kind, origin, harmless=_HARMLESS, fixed=fixed)
    raw = convert(config, kind, origin)
    fields = decoder_fields(raw, origin)
    rope, window_rope = _read_ropes(raw, origin)
    return Gemma(
        **fields,
        windows=_windows(raw, origin),
        rope=rope,
        window_rope=window_rope,
        scale=raw.query_pre_attn_scalar**-0.5,
        softcap=raw.attn_logit_softcapping,
        qk_norm=third,
        attention_bias=raw.attention_bias,
    )


def _windows(raw: _Config, origin: str) -> dict[int, int]:
    """The attention windows of the blocks that have one: all but every second, or every sixth."""
    pattern = raw.sliding_window_pattern if isinstance(raw, _Config3) else 2
    kinds: Sequence[str] | None = parse_layer_types(
        raw.layer_types, _KINDS, raw.num_hidden_layers, origin
    )
    if kinds is None:
        kinds = [_KINDS[(block + 1) % pattern > 0] for block in range(raw.num_hidden_layers)]
    blocks = [block for block, kind in enumerate(kinds) if kind == "sliding_attention"]
    if blocks and raw.sliding_window is None:
        raise CheckpointError(
            f"{origin}: sliding_window is null, and blocks {blocks} slide by layer_types; give "
            "their window"
        )
    return dict.fromkeys(blocks, raw.sliding_window or 0)


def _read_ropes(raw: _Config, origin: str) -> list[Rope]:
    """The ropes of the blocks without and with a window, in Gemma 2 the same.

    Gemma 3's old key scales the first alone.
    """
    if not isinstance(raw, _Config3):
        return [parse_rope(raw, origin)] * 2
    return parse_ropes(
        raw.rope_parameters,
        {"full_attention": raw.rope_scaling, "sliding_attention": None},
        {"full_attention": raw.rope_theta, "sliding_attention": raw.rope_local_base_freq},
        {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0},
        max_position_embeddings=raw.max_position_embeddings,
        origin=origin,
    )
