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
from typing import Any

import onnx_ir as ir

from siren_export.graph.builder import GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.embedding import embed_tokens
from siren_export.graph.mlp import gated_mlp
from siren_export.graph.norms import rms_norm
from siren_export.graph.rotary import rotary_tables
from siren_export.graph.self_attention import self_attention
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights

from .base import Decoder
from .keys import check_keys
from .parsing import DecoderConfig, PositiveFloat, Size, convert, decoder_fields, parse_rope

MODEL_TYPES = ("olmo2",)


@dataclass(frozen=True, kw_only=True)
class Olmo2(Decoder):
    """OLMo 2; `attention_bias` is of all four matrices."""

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
        rotary = rotary_tables(g, self.rope, self.head_dim, input_ids, max_length, cache)
        norm = partial(rms_norm, g, weights, size=self.hidden_size, epsilon=self.rms_norm_eps)

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
                x = norm(g.to_float(x), f"{name}.post_attention_layernorm")
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
                x = norm(mlp, f"{name}.post_feedforward_layernorm")
                hidden = g.op("Add", hidden, x, name="mlp_residual")
            if taps.reads_residual(block):
                last = taps.final_norm and block == self.blocks - 1
                states[block] = norm(hidden, "norm") if last else hidden
        return states


def _qk_norm(
    g: GraphBuilder, config: Olmo2, weights: BackboneWeights, block: int, part: str, y: ir.Value
) -> ir.Value:
    """RMSNorm over all heads of queries or keys, in the compute dtype."""
    heads = config.attention_heads if part == "q" else config.kv_heads
    name, size = f"layers.{block}.self_attn.{part}_norm", heads * config.head_dim
    return g.to_compute(rms_norm(g, weights, g.to_float(y), name, size, config.rms_norm_eps))


class _Config(DecoderConfig, kw_only=True):
    vocab_size: Size = 50304
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Size = 32
    num_attention_heads: Size = 32
    rms_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = False
    max_position_embeddings: Size = 2048


def parse(config: Mapping[str, Any], origin: str) -> Olmo2:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin)
    raw = convert(config, _Config, origin)
    return Olmo2(
        **decoder_fields(raw, origin),
        rope=parse_rope(raw, origin),
        attention_bias=raw.attention_bias,
    )
