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

from .keys import check_keys
from .parsing import (
    PositiveFloat,
    Size,
    check_heads,
    convert,
    parse_layer_types,
    parse_rope,
    parse_ropes,
)

MODEL_TYPES = ("gemma2", "gemma3_text")
_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Gemma:
    """Gemma 2 or Gemma 3. Sizes are channels.

    Attributes:
        windows: block -> the tokens that a token sees there; the others see all before them.
        rope, window_rope: of the blocks without and with a window.
        scale: of the scores of attention, which `softcap` then caps where it is not None.
        qk_norm: whether queries and keys are normed.
        prefixes: that the stored names of the weights may have.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    blocks: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    windows: Mapping[int, int]
    rope: Rope
    window_rope: Rope
    scale: float
    softcap: float | None
    qk_norm: bool
    attention_bias: bool
    max_position_embeddings: int
    tied_embeddings: bool
    prefixes: tuple[str, ...] = ("model.",)

    causal = True

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens, that the model was made for."""
        return self.max_position_embeddings

    @property
    def block_parameters(self) -> int:
        """The elements of a block's matrices."""
        heads = 2 * self.attention_heads + 2 * self.kv_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)

    def check_max_length(self, max_length: int, origin: str) -> None:
        """As `Backbone.check_max_length`: the graph is exact at any length."""

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

        states: dict[int, ir.Value] = {}
        for block in range(taps.deepest + 1):
            norm = partial(_norm, g, self, weights, f"layers.{block}")
            with g.scope(f"layers.{block}"):
                x = self_attention(
                    g,
                    weights,
                    g.to_compute(norm("input_layernorm", hidden)),
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
                x = norm("post_attention_layernorm", g.to_float(x))
                hidden = g.op("Add", hidden, x, name="attention_residual")

                x = norm("pre_feedforward_layernorm", hidden)
                mlp = gated_mlp(
                    g,
                    weights,
                    f"layers.{block}.mlp",
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
                x = norm("post_feedforward_layernorm", mlp)
                hidden = g.op("Add", hidden, x, name="mlp_residual")
            if taps.reads_residual(block):
                last = taps.final_norm and block == self.blocks - 1
                states[block] = _norm(g, self, weights, "", "norm", hidden) if last else hidden
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
    heads = config.attention_heads if part == "q" else config.kv_heads
    scope = f"layers.{block}.self_attn"
    norm = partial(_norm, g, config, weights, scope, f"{part}_norm", size=config.head_dim)
    return norm_heads(g, y, heads, config.head_dim, norm)


def _norm(
    g: GraphBuilder,
    config: Gemma,
    weights: BackboneWeights,
    prefix: str,
    name: str,
    x: ir.Value,
    size: int | None = None,
) -> ir.Value:
    """RMSNorm by 1 + weight over `size` channels, by default those of the residual stream."""
    stored = ".".join(filter(None, (prefix, name, "weight")))
    scale = weights.vector(stored, size or config.hidden_size, FLOAT, offset=1.0)
    return rms_norm(g, x, name, scale, config.rms_norm_eps)


class _Config(msgspec.Struct):
    model_type: str
    vocab_size: Size | msgspec.UnsetType = msgspec.UNSET
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Size = 26
    num_attention_heads: Size = 8
    num_key_value_heads: Size = 4
    head_dim: Size = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    query_pre_attn_scalar: PositiveFloat = 256
    attn_logit_softcapping: PositiveFloat | msgspec.UnsetType | None = msgspec.UNSET
    sliding_window: Size | None = 4096
    layer_types: list[str] | None = None
    max_position_embeddings: Size | msgspec.UnsetType = msgspec.UNSET
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = True


class _Config3(_Config):
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
    vocabulary, context = (262208, 131072) if third else (256000, 8192)
    if raw.max_position_embeddings is not msgspec.UNSET:
        context = raw.max_position_embeddings
    check_heads(raw.num_attention_heads, raw.num_key_value_heads, raw.head_dim, origin)
    ropes = (
        _ropes3(raw, context, origin) if isinstance(raw, _Config3) else _rope2(raw, context, origin)
    )
    softcap = raw.attn_logit_softcapping
    if softcap is msgspec.UNSET:
        softcap = None if third else 50.0
    return Gemma(
        model_type=raw.model_type,
        vocab_size=vocabulary if raw.vocab_size is msgspec.UNSET else raw.vocab_size,
        hidden_size=raw.hidden_size,
        intermediate_size=raw.intermediate_size,
        blocks=raw.num_hidden_layers,
        attention_heads=raw.num_attention_heads,
        kv_heads=raw.num_key_value_heads,
        head_dim=raw.head_dim,
        hidden_act=raw.hidden_activation,
        rms_norm_eps=raw.rms_norm_eps,
        windows=_windows(raw, origin),
        rope=ropes[0],
        window_rope=ropes[1],
        scale=raw.query_pre_attn_scalar**-0.5,
        softcap=softcap,
        qk_norm=third,
        attention_bias=raw.attention_bias,
        max_position_embeddings=context,
        tied_embeddings=raw.tie_word_embeddings,
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


def _rope2(raw: _Config, context: int, origin: str) -> tuple[Rope, Rope]:
    """Gemma 2 has one rope."""
    rope = parse_rope(
        raw.rope_scaling,
        raw.rope_parameters,
        rope_theta=raw.rope_theta,
        original_max_position_embeddings=None,
        max_position_embeddings=context,
        origin=origin,
    )
    return rope, rope


def _ropes3(raw: _Config3, context: int, origin: str) -> tuple[Rope, Rope]:
    """The ropes of the blocks without and with a window; only the first is scaled by old keys."""
    full, sliding = parse_ropes(
        raw.rope_parameters,
        {"full_attention": raw.rope_scaling, "sliding_attention": None},
        {"full_attention": raw.rope_theta, "sliding_attention": raw.rope_local_base_freq},
        {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0},
        max_position_embeddings=context,
        origin=origin,
    )
    return full, sliding
