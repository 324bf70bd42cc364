"""ModernBERT (arXiv 2412.13663), from token ids to the tapped states.

    hidden = norm(tok_embeddings[input_ids])
    for each block:
        hidden += Wo(attention(rope(q), rope(k), v))     on attn_norm(hidden); the first on hidden
        hidden += Wo(act(gate) * up)                     on mlp_norm(hidden)

Some blocks see all tokens, the others those within half of `local_attention` either way, by a rope
of their own. In float16 the residual stream and the norms stay in float32, as in decoders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import onnx_ir as ir

from siren_export.graph.attention import (
    bidirectional_attention,
    visible_keys,
    visible_neighbours,
)
from siren_export.graph.builder import GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.linear import linear
from siren_export.graph.mlp import gated_mlp
from siren_export.graph.norms import layer_norm
from siren_export.graph.roles import Role
from siren_export.graph.rotary import Rope, Rotary, rotary_tables
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights, Rows

from .base import Encoder
from .keys import check_keys
from .parsing import (
    Config,
    PositiveFloat,
    Size,
    check_heads,
    convert,
    encoder_fields,
    parse_layer_types,
    parse_ropes,
)

MODEL_TYPES = ("modernbert",)
_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, kw_only=True)
class ModernBert(Encoder):
    """ModernBERT.

    Attributes:
        local: the blocks in which a token sees its `neighbours` alone, so many either way.
        rope, local_rope: of the blocks that see all, and of the others.
    """

    norm_eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    local: frozenset[int]
    neighbours: int
    rope: Rope
    local_rope: Rope

    @property
    def block_parameters(self) -> int:
        """The elements of a block's matrices."""
        return self.hidden_size * (4 * self.hidden_size + 3 * self.intermediate_size)

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
        """As `Backbone.author`."""
        if attention_mask is None or cache is not None:
            raise AssertionError("an encoder reads a whole text and its mask")
        weights.check_prefix("model.")
        size, epsilon = self.hidden_size, self.norm_eps
        norm = partial(layer_norm, g, weights, size=size, epsilon=epsilon, bias=self.norm_bias)
        with g.scope("embeddings"):
            shape = (self.vocab_size, self.hidden_size)
            table = weights.table("embeddings.tok_embeddings.weight", shape, g.compute)
            hidden = g.to_float(g.op("Gather", g.weight("tok_embeddings", table), input_ids))
            hidden = norm(hidden, "embeddings.norm")
        visible = visible_keys(g, attention_mask)
        seen = {False: visible, True: visible_neighbours(g, visible, self.neighbours)}
        ropes = {
            local: rotary_tables(g, rope, self.head_dim, input_ids, max_length)
            for local, rope in ((False, self.rope), (True, self.local_rope))
        }

        states: dict[int, ir.Value] = {}
        for block in range(taps.deepest + 1):
            name, local = f"layers.{block}", block in self.local
            with g.scope(name):
                # The embeddings are normed already.
                x = norm(hidden, f"{name}.attn_norm") if block else hidden
                x = _attention(g, self, weights, g.to_compute(x), block, ropes[local], seen[local])
                hidden = g.op("Add", hidden, g.to_float(x), name="attention_residual")

                x = norm(hidden, f"{name}.mlp_norm")
                mlp = gated_mlp(
                    g,
                    weights,
                    f"{name}.mlp",
                    g.to_compute(x),
                    hidden_size=self.hidden_size,
                    intermediate_size=self.intermediate_size,
                    hidden_act=self.hidden_act,
                    bias=self.mlp_bias,
                    fused="Wi",
                    down="Wo",
                )
                if taps.reads_mlp(block):
                    states[block] = mlp
                    if block == taps.deepest:
                        break
                hidden = g.op("Add", hidden, mlp, name="mlp_residual")
            if taps.reads_residual(block):
                last = taps.final_norm and block == self.blocks - 1
                states[block] = norm(hidden, "final_norm") if last else hidden
        return states


def _attention(
    g: GraphBuilder,
    config: ModernBert,
    weights: BackboneWeights,
    x: ir.Value,
    block: int,
    rotary: Rotary,
    visible: ir.Value,
) -> ir.Value:
    """Bidirectional attention: x [batch, sequence, hidden] to the same shape."""
    prefix, size, bias = f"layers.{block}.attn", config.hidden_size, config.attention_bias
    heads = config.attention_heads

    def project(label: str, role: Role, start: int) -> ir.Value:
        rows = Rows(start * size, 3 * size)
        return linear(
            g, weights, x, f"{prefix}.Wqkv", (size, size), role, bias=bias, label=label, rows=rows
        )

    with g.scope("attn"):
        q = rotary.rotate(g, project("query", "query", 0), heads)
        k = rotary.rotate(g, project("key", "key", 1), heads)
        v = project("value", "value", 2)
        y = bidirectional_attention(g, q, k, v, visible, heads=heads, head_dim=config.head_dim)
        shape = (size, size)
        return linear(g, weights, y, f"{prefix}.Wo", shape, "attention_output", bias=bias)


class _Config(Config, kw_only=True):
    vocab_size: Size = 50368
    hidden_size: Size = 768
    intermediate_size: Size = 1152
    num_hidden_layers: Size = 22
    num_attention_heads: Size = 12
    hidden_act: str = msgspec.field(name="hidden_activation", default="gelu")
    norm_eps: PositiveFloat = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    layer_types: list[str] | None = None
    global_attn_every_n_layers: Size = 3
    local_attention: Size = 128
    max_position_embeddings: Size = 8192
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    global_rope_theta: PositiveFloat | None = None
    local_rope_theta: PositiveFloat | None = None


# Of training, of the heads that a SIREN head replaces, and of how transformers computes.
_HARMLESS = frozenset(
    {
        "classifier_activation", "classifier_bias", "classifier_pooling", "decoder_bias",
        "deterministic_flash_attn", "embedding_dropout", "initializer_cutoff_factor",
        "layer_norm_eps", "mlp_dropout", "reference_compile", "repad_logits_with_grad",
        "sparse_pred_ignore_index", "sparse_prediction",
    }
)  # fmt: skip
_FIXED = {"position_embedding_type": ("absolute", "rope")}


def parse(config: Mapping[str, Any], origin: str) -> ModernBert:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS, fixed=_FIXED)
    raw = convert(config, _Config, origin)
    fields = encoder_fields(raw, origin)
    heads = raw.num_attention_heads
    check_heads(heads, heads, raw.hidden_size // heads, origin)
    blocks = raw.num_hidden_layers
    kinds: Sequence[str] | None = parse_layer_types(raw.layer_types, _KINDS, blocks, origin)
    if kinds is None:
        every = raw.global_attn_every_n_layers
        kinds = [_KINDS[block % every > 0] for block in range(blocks)]
    rope, local_rope = parse_ropes(
        raw.rope_parameters,
        {"full_attention": raw.rope_scaling, "sliding_attention": raw.rope_scaling},
        {"full_attention": raw.global_rope_theta, "sliding_attention": raw.local_rope_theta},
        {"full_attention": 160_000.0, "sliding_attention": 10_000.0},
        max_position_embeddings=raw.max_position_embeddings,
        origin=origin,
    )
    return ModernBert(
        **fields,
        norm_eps=raw.norm_eps,
        norm_bias=raw.norm_bias,
        attention_bias=raw.attention_bias,
        mlp_bias=raw.mlp_bias,
        local=frozenset(b for b, kind in enumerate(kinds) if kind == "sliding_attention"),
        neighbours=raw.local_attention // 2,
        rope=rope,
        local_rope=local_rope,
    )
