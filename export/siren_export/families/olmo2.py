"""OLMo 2 (arXiv 2501.00656), from token ids to the tapped states.

    hidden = embed_tokens[input_ids]
    for each block:
        hidden += post_attention_layernorm(o_proj(attention(rope(norm(q)), rope(norm(k)), v)))
        hidden += post_feedforward_layernorm(down_proj(act(gate) * up))

A block norms what it adds, not what it reads; queries and keys are normed over all their heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import msgspec
import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.embedding import embed_tokens
from siren_export.graph.mlp import gated_mlp
from siren_export.graph.norms import rms_norm
from siren_export.graph.rotary import Rope, rotary_tables
from siren_export.graph.self_attention import self_attention
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights

from .keys import check_keys
from .parsing import PositiveFloat, Size, check_heads, convert, parse_rope

MODEL_TYPES = ("olmo2",)


@dataclass(frozen=True)
class Olmo2:
    """OLMo 2. Sizes are channels; `prefixes` may stand before the stored names of the weights."""

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
    rope: Rope
    attention_bias: bool
    max_position_embeddings: int
    tied_embeddings: bool
    prefixes: tuple[str, ...] = ("model.",)

    causal = True
    windows: ClassVar[Mapping[int, int]] = {}

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
        rotary = rotary_tables(g, self.rope, self.head_dim, input_ids, max_length, cache)

        states: dict[int, ir.Value] = {}
        for block in range(taps.deepest + 1):
            name = f"layers.{block}"
            with g.scope(name):
                x = self_attention(
                    g,
                    weights,
                    g.to_compute(hidden),
                    block,
                    hidden_size=self.hidden_size,
                    heads=self.attention_heads,
                    kv_heads=self.kv_heads,
                    head_dim=self.head_dim,
                    rotary=rotary,
                    qkv_bias=self.attention_bias,
                    output_bias=self.attention_bias,
                    norm=partial(_qk_norm, g, self, weights, block),
                    cache=cache,
                )
                x = g.to_float(x)
                x = _norm(g, self, weights, x, f"{name}.post_attention_layernorm")
                hidden = g.op("Add", hidden, x, name="attention_residual")

                mlp = gated_mlp(
                    g,
                    weights,
                    f"{name}.mlp",
                    g.to_compute(hidden),
                    hidden_size=self.hidden_size,
                    intermediate_size=self.intermediate_size,
                    hidden_act=self.hidden_act,
                    bias=False,
                )
                if taps.reads_mlp(block):
                    states[block] = mlp
                    if block == taps.deepest:
                        break
                x = _norm(g, self, weights, mlp, f"{name}.post_feedforward_layernorm")
                hidden = g.op("Add", hidden, x, name="mlp_residual")
            if taps.reads_residual(block):
                last = taps.final_norm and block == self.blocks - 1
                states[block] = _norm(g, self, weights, hidden, "norm") if last else hidden
        return states


def _qk_norm(
    g: GraphBuilder, config: Olmo2, weights: BackboneWeights, block: int, part: str, y: ir.Value
) -> ir.Value:
    """RMSNorm over all heads of queries or keys, in the compute dtype."""
    heads = config.attention_heads if part == "q" else config.kv_heads
    name, size = f"layers.{block}.self_attn.{part}_norm", heads * config.head_dim
    return g.to_compute(_norm(g, config, weights, g.to_float(y), name, size))


def _norm(
    g: GraphBuilder,
    config: Olmo2,
    weights: BackboneWeights,
    x: ir.Value,
    name: str,
    size: int | None = None,
) -> ir.Value:
    """RMSNorm over `size` channels, by default those of the residual stream."""
    scale = weights.vector(f"{name}.weight", size or config.hidden_size, FLOAT)
    return rms_norm(g, x, name.rpartition(".")[2], scale, config.rms_norm_eps)


class _Config(msgspec.Struct):
    model_type: str
    vocab_size: Size = 50304
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = False
    max_position_embeddings: Size = 2048
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False


def parse(config: Mapping[str, Any], origin: str) -> Olmo2:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin)
    raw = convert(config, _Config, origin)
    kv_heads = raw.num_key_value_heads or raw.num_attention_heads
    head_dim = raw.head_dim or raw.hidden_size // raw.num_attention_heads
    check_heads(raw.num_attention_heads, kv_heads, head_dim, origin)
    return Olmo2(
        model_type=raw.model_type,
        vocab_size=raw.vocab_size,
        hidden_size=raw.hidden_size,
        intermediate_size=raw.intermediate_size,
        blocks=raw.num_hidden_layers,
        attention_heads=raw.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_act=raw.hidden_act,
        rms_norm_eps=raw.rms_norm_eps,
        rope=parse_rope(
            raw.rope_scaling,
            raw.rope_parameters,
            rope_theta=raw.rope_theta,
            original_max_position_embeddings=None,
            max_position_embeddings=raw.max_position_embeddings,
            origin=origin,
        ),
        attention_bias=raw.attention_bias,
        max_position_embeddings=raw.max_position_embeddings,
        tied_embeddings=raw.tie_word_embeddings,
    )
