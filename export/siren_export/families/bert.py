"""The BERT family: BERT (arXiv 1810.04805), RoBERTa (arXiv 1907.11692) and XLM-R (1911.02116).

    hidden = norm(word[input_ids] + position + token_type[0])
    for each block:
        hidden = norm(hidden + output(attention(q, k, v)))
        hidden = norm(hidden + output(act(intermediate(hidden))))

RoBERTa and XLM-R count positions from behind the padding token's id on, and no padding tokens, of
which a text may hold some. In float16 the residual stream and the norms stay in float32, as in
decoders.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir

from siren_export.graph.attention import bidirectional_attention, visible_keys
from siren_export.graph.builder import FLOAT, INT64, GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.linear import linear
from siren_export.graph.mlp import dense_mlp
from siren_export.graph.norms import layer_norm
from siren_export.graph.roles import Role
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights, Weight
from siren_runtime.errors import CheckpointError

from .base import Encoder
from .keys import check_keys
from .parsing import Config, PositiveFloat, Size, convert, encoder_fields

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")


@dataclass(frozen=True, kw_only=True)
class Bert(Encoder):
    """BERT with absolute positions.

    `padding` is the padding token where positions are counted by it, as in RoBERTa.
    """

    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    padding: int | None

    def check_max_length(self, max_length: int, origin: str) -> None:
        """As `Backbone.check_max_length`: there must be a position for every token."""
        unused = 0 if self.padding is None else self.padding + 1
        if max_length > self.max_position_embeddings - unused:
            less = f" less {unused}, where positions start" if unused else ""
            raise CheckpointError(
                f"{origin}: the head's max_length {max_length} exceeds max_position_embeddings "
                f"{self.max_position_embeddings}{less}; lower inference.max_length in the artifact"
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
        """As `Backbone.author`."""
        if attention_mask is None or cache is not None:
            raise AssertionError("an encoder reads a whole text and its mask")
        weights.check_prefix("bert." if self.padding is None else "roberta.")
        hidden = _embeddings(g, self, weights, input_ids, max_length)
        visible = visible_keys(g, attention_mask)
        norm = partial(layer_norm, g, weights, size=self.hidden_size, epsilon=self.layer_norm_eps)

        states: dict[int, ir.Value] = {}
        for block in range(taps.deepest + 1):
            name = f"encoder.layer.{block}"
            with g.scope(f"layer.{block}"):
                x = _attention(g, self, weights, g.to_compute(hidden), visible, block)
                hidden = g.op("Add", hidden, g.to_float(x), name="attention_residual")
                hidden = norm(hidden, f"{name}.attention.output.LayerNorm")

                mlp = dense_mlp(
                    g,
                    weights,
                    name,
                    g.to_compute(hidden),
                    hidden_size=self.hidden_size,
                    intermediate_size=self.intermediate_size,
                    hidden_act=self.hidden_act,
                )
                if taps.reads_mlp(block):
                    states[block] = mlp
                    if block == taps.deepest:
                        break
                hidden = g.op("Add", hidden, mlp, name="mlp_residual")
                hidden = norm(hidden, f"{name}.output.LayerNorm")
            if taps.reads_residual(block):
                states[block] = hidden
        return states


def _embeddings(
    g: GraphBuilder,
    config: Bert,
    weights: BackboneWeights,
    input_ids: ir.Value,
    max_length: int,
) -> ir.Value:
    with g.scope("embeddings"):
        shape = (config.vocab_size, config.hidden_size)
        words = weights.table("embeddings.word_embeddings.weight", shape, g.compute)
        hidden = g.to_float(g.op("Gather", g.weight("word_embeddings", words), input_ids))
        first = 0 if config.padding is None else config.padding
        rows = max_length if config.padding is None else max_length + 1
        positions = g.weight("position_embeddings", _positions(config, weights, first, rows))
        if config.padding is None:
            length = g.op("Gather", g.op("Shape", input_ids), g.const([1]))
            seen = g.op("Slice", positions, g.const([0]), length, g.const([0]))
        else:
            seen = g.op("Gather", positions, _counted(g, input_ids, config.padding))
        hidden = g.op("Add", hidden, seen)
        name, epsilon = "embeddings.LayerNorm", config.layer_norm_eps
        return layer_norm(g, weights, hidden, name, config.hidden_size, epsilon)


def _counted(g: GraphBuilder, input_ids: ir.Value, padding: int) -> ir.Value:
    """How many tokens up to each are no padding ones; 0 where it is one."""
    padded = g.op("Equal", input_ids, g.const(padding))
    counts = g.cast(g.op("Not", padded), FLOAT)  # TensorRT sums no integers
    return g.cast(g.op("Mul", g.op("CumSum", counts, g.const(1)), counts), INT64)


def _positions(config: Bert, weights: BackboneWeights, first: int, count: int) -> Weight:
    """Position embeddings plus token type 0, the only one a guard uses, float32: some rows."""
    width = config.hidden_size
    position = weights.table(
        "embeddings.position_embeddings.weight", (config.max_position_embeddings, width), FLOAT
    )
    token_type = weights.table(
        "embeddings.token_type_embeddings.weight", (config.type_vocab_size, width), FLOAT
    )

    def blocks() -> Iterator[np.ndarray]:
        rows = np.concatenate(list(position.blocks()))[first : first + count]
        yield rows + next(token_type.blocks())[0]

    return Weight(FLOAT, (count, width), blocks)


def _attention(
    g: GraphBuilder,
    config: Bert,
    weights: BackboneWeights,
    x: ir.Value,
    visible: ir.Value,
    block: int,
) -> ir.Value:
    """Bidirectional attention: x [batch, sequence, hidden] to the same shape."""
    prefix = f"encoder.layer.{block}.attention"
    square = (config.hidden_size, config.hidden_size)

    def project(part: str, role: Role) -> ir.Value:
        return linear(g, weights, x, f"{prefix}.self.{part}", square, role, bias=True)

    with g.scope("attention"):
        q, k, v = project("query", "query"), project("key", "key"), project("value", "value")
        heads, head_dim = config.attention_heads, config.head_dim
        y = bidirectional_attention(g, q, k, v, visible, heads=heads, head_dim=head_dim)
        name = f"{prefix}.output.dense"
        return linear(g, weights, y, name, square, "attention_output", bias=True, label="output")


class _Config(Config, kw_only=True):
    vocab_size: Size = 30522
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    hidden_act: str = "gelu"
    layer_norm_eps: PositiveFloat = 1e-12
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    position_embedding_type: str | None = "absolute"
    is_decoder: bool = False
    pad_token_id: int | msgspec.UnsetType | None = msgspec.UNSET


# Of the pooler that Google's checkpoints name and transformers has not.
_HARMLESS = frozenset(
    {
        "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
        "pooler_size_per_head", "pooler_type",
    }
)  # fmt: skip
_FIXED = {"add_cross_attention": (False,), "directionality": ("bidi",)}


def parse(config: Mapping[str, Any], origin: str) -> Bert:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS, fixed=_FIXED)
    raw = convert(config, _Config, origin)
    if raw.position_embedding_type not in (None, "absolute"):
        raise CheckpointError(
            f"{origin}: position_embedding_type {raw.position_embedding_type!r} is not supported; "
            "supported: absolute"
        )
    if raw.is_decoder:
        raise CheckpointError(f"{origin}: is_decoder is true; only BERT as an encoder is supported")
    padding = None
    if raw.model_type != "bert":
        padding = 1 if raw.pad_token_id is msgspec.UNSET else raw.pad_token_id
        if padding is None or padding < 0:
            raise CheckpointError(
                f"{origin}: pad_token_id is {json.dumps(padding)}; a {raw.model_type} counts "
                "positions by it, so it must be a token"
            )
    return Bert(
        **encoder_fields(raw, origin),
        layer_norm_eps=raw.layer_norm_eps,
        max_position_embeddings=raw.max_position_embeddings,
        type_vocab_size=raw.type_vocab_size,
        padding=padding,
    )
