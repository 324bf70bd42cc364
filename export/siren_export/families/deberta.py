"""DeBERTa v2 and v3 (arXiv 2006.03654, 2111.09543), from token ids to the tapped states.

    hidden = norm(word[input_ids] [+ position] [+ token_type[0]])
    for each block:
        hidden = norm(hidden + output(attention))
        hidden = norm(hidden + output(act(intermediate(hidden))))
        if there is a convolution, the first block alone:
            hidden = norm(hidden + conv_act(conv(embeddings)))

The scores of attention say how a query suits a key, and how each suits the distance of the other:

    scores[i, j] = (q[i] k[j] + q[i] pos_key[i - j] + k[j] pos_query[i - j]) / sqrt(3 head_dim)

Distances are put in buckets, which widen with the logarithm. The keys and queries of distances are
the same for every text, so they are made when the weights are written. In float16 the residual
stream and the norms stay in float32, as in decoders.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from siren_export.graph.activations import ACTIVATIONS
from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.convolution import Convolution
from siren_export.graph.disentangled import Distances, disentangled_attention
from siren_export.graph.linear import linear
from siren_export.graph.mlp import dense_mlp
from siren_export.graph.norms import layer_norm
from siren_export.graph.roles import Role
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights, Weight, computed
from siren_runtime.errors import CheckpointError

from .base import Encoder
from .keys import check_keys
from .parsing import Config, PositiveFloat, Size, convert, encoder_fields

MODEL_TYPES = ("deberta-v2",)


@dataclass(frozen=True, kw_only=True)
class Deberta(Encoder):
    """DeBERTa v2 or v3.

    Attributes:
        parts: "c2p" where queries look at distances, "p2c" where keys do.
        span: how many distances there are each way, in `buckets` where these are not None.
        shared: whether distances have the matrices of queries and keys, else ones of their own.
        absolute: whether positions are added to the embeddings as well.
        normed: whether the embeddings of distances are normed.
        convolution: of the embeddings, beside the first block, where there is one.
    """

    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    parts: frozenset[str]
    span: int
    buckets: int | None
    furthest: int
    shared: bool
    absolute: bool
    normed: bool
    convolution: Convolution | None

    def check_max_length(self, max_length: int, origin: str) -> None:
        """As `Backbone.check_max_length`: absolute positions must be there for every token."""
        if self.absolute and max_length > self.max_position_embeddings:
            raise CheckpointError(
                f"{origin}: the head's max_length {max_length} exceeds max_position_embeddings "
                f"{self.max_position_embeddings}; lower inference.max_length in the artifact"
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
        weights.check_prefix("deberta.")
        hidden = embeddings = _embeddings(g, self, weights, input_ids, max_length)
        distances = Distances.author(g, input_ids, attention_mask, distance_rows(self, max_length))
        norm = partial(layer_norm, g, weights, size=self.hidden_size, epsilon=self.layer_norm_eps)

        states: dict[int, ir.Value] = {}
        for block in range(taps.deepest + 1):
            name = f"encoder.layer.{block}"
            with g.scope(f"layer.{block}"):
                x = _attention(g, self, weights, g.to_compute(hidden), block, distances)
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
                if block == 0 and self.convolution is not None:
                    parts = embeddings, attention_mask, "encoder.conv.conv", self.hidden_size
                    x = self.convolution.author(g, weights, *parts)
                    hidden = g.op("Add", hidden, g.to_float(x), name="conv_residual")
                    hidden = norm(hidden, "encoder.conv.LayerNorm")
            if taps.reads_residual(block):
                states[block] = hidden
        return states


def _embeddings(
    g: GraphBuilder,
    config: Deberta,
    weights: BackboneWeights,
    input_ids: ir.Value,
    max_length: int,
) -> ir.Value:
    with g.scope("embeddings"):
        shape = (config.vocab_size, config.hidden_size)
        words = weights.table("embeddings.word_embeddings.weight", shape, g.compute)
        hidden = g.to_float(g.op("Gather", g.weight("word_embeddings", words), input_ids))
        if config.absolute:
            table = g.weight("position_embeddings", _positions(config, weights, max_length))
            length = g.op("Gather", g.op("Shape", input_ids), g.const([1]))
            seen = g.op("Slice", table, g.const([0]), length, g.const([0]))
            hidden = g.op("Add", hidden, seen)
        if config.type_vocab_size:
            table = g.weight("token_type", _token_type(config, weights))
            hidden = g.op("Add", hidden, table)
        name, epsilon = "embeddings.LayerNorm", config.layer_norm_eps
        return layer_norm(g, weights, hidden, name, config.hidden_size, epsilon)


def _positions(config: Deberta, weights: BackboneWeights, max_length: int) -> Weight:
    width = config.hidden_size
    shape = (config.max_position_embeddings, width)
    stored = weights.table("embeddings.position_embeddings.weight", shape, FLOAT)

    def blocks() -> Iterator[np.ndarray]:
        yield np.concatenate(list(stored.blocks()))[:max_length]

    return Weight(FLOAT, (max_length, width), blocks)


def _token_type(config: Deberta, weights: BackboneWeights) -> Weight:
    """Token type 0, the only one a guard uses."""
    shape = (config.type_vocab_size, config.hidden_size)
    stored = weights.table("embeddings.token_type_embeddings.weight", shape, FLOAT)
    return Weight(FLOAT, (config.hidden_size,), lambda: (next(stored.blocks())[0] for _ in "0"))


def distance_rows(config: Deberta, max_length: int) -> np.ndarray:
    """The row of the embeddings of distances for each distance from max_length to -max_length.

    int64 [2 * max_length + 1]. Rounded as in transformers, whose logarithms are float32.
    """
    distances = np.arange(max_length, -max_length - 1, -1)
    if config.buckets is not None:
        middle = config.buckets // 2
        size = np.where(np.abs(distances) < middle, middle - 1, np.abs(distances))
        scale = np.log(np.float32((config.furthest - 1) / middle))
        logarithm = np.log((size / middle).astype(np.float32)) / scale * np.float32(middle - 1)
        bucket = np.sign(distances) * (np.ceil(logarithm) + middle)
        distances = np.where(size <= middle, distances, bucket).astype(np.int64)
    return np.clip(distances + config.span, 0, 2 * config.span - 1)


def _attention(
    g: GraphBuilder,
    config: Deberta,
    weights: BackboneWeights,
    x: ir.Value,
    block: int,
    distances: Distances,
) -> ir.Value:
    """Bidirectional attention: x [batch, sequence, hidden] to the same shape."""
    prefix = f"encoder.layer.{block}.attention"
    square = (config.hidden_size, config.hidden_size)

    def project(part: str, role: Role) -> ir.Value:
        return linear(g, weights, x, f"{prefix}.self.{part}_proj", square, role, bias=True)

    def of_distances(part: str, own: str) -> ir.Value:
        name = f"{prefix}.self.{part if config.shared else own}_proj"
        return g.weight(f"{own}s", _projected(config, weights, name, g.compute))

    with g.scope("attention"):
        q, k, v = project("query", "query"), project("key", "key"), project("value", "value")
        y = disentangled_attention(
            g,
            q,
            k,
            v,
            distances,
            heads=config.attention_heads,
            head_dim=config.head_dim,
            keys=of_distances("key", "pos_key") if "c2p" in config.parts else None,
            queries=of_distances("query", "pos_query") if "p2c" in config.parts else None,
        )
        name = f"{prefix}.output.dense"
        return linear(g, weights, y, name, square, "attention_output", bias=True, label="output")


def _projected(config: Deberta, weights: BackboneWeights, name: str, dtype: ir.DataType) -> Weight:
    """The embeddings of distances, normed, times a matrix of a block, plus its bias."""
    rows, width = 2 * config.span, config.hidden_size
    embeddings = weights.table("encoder.rel_embeddings.weight", (rows, width), FLOAT)
    matrix = weights.matrix(f"{name}.weight", (width, width), FLOAT)
    bias = weights.vector(f"{name}.bias", width, FLOAT)
    norm = [embeddings, matrix, bias]
    if config.normed:
        norm += [weights.vector(f"encoder.LayerNorm.{p}", width, FLOAT) for p in ("weight", "bias")]

    def make() -> np.ndarray:
        x, w, b, *parts = (np.concatenate(list(weight.blocks())) for weight in norm)
        if parts:
            x = x - x.mean(axis=1, keepdims=True)
            x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(config.layer_norm_eps))
            x = x * parts[0] + parts[1]
        made: np.ndarray = (x @ w + b).astype(dtype.numpy())
        return made

    return computed(dtype, (rows, width), make)


class _Config(Config, kw_only=True):
    vocab_size: Size = 128100
    hidden_size: Size = 1536
    intermediate_size: Size = 6144
    num_hidden_layers: Size = 24
    num_attention_heads: Size = 24
    hidden_act: str = "gelu"
    layer_norm_eps: PositiveFloat = 1e-7
    max_position_embeddings: Size = 512
    type_vocab_size: int = 0
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    pos_att_type: list[str] | str | None = None
    position_biased_input: bool = True
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    embedding_size: Size | None = None
    attention_head_size: Size | None = None
    conv_kernel_size: int = 0
    conv_act: str = "tanh"
    conv_groups: Size = 1


# Of the pooler and of heads.
_HARMLESS = frozenset(
    {
        "cls_dropout", "legacy", "pooler_dropout", "pooler_hidden_act", "pooler_hidden_size",
        "summary_hidden_size",
    }
)  # fmt: skip
_FIXED = {"z_steps": (0,)}


def parse(config: Mapping[str, Any], origin: str) -> Deberta:
    """Read a config.json of one of `MODEL_TYPES`; `origin` names it in errors.

    Raises:
        CheckpointError: a key of a wrong type or range, or a setting that the graph does not have.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS, fixed=_FIXED)
    raw = convert(config, _Config, origin)
    fields = encoder_fields(raw, origin)
    heads, width = raw.num_attention_heads, raw.hidden_size
    for key, value, allowed in (
        ("relative_attention", raw.relative_attention, True),
        ("embedding_size", raw.embedding_size or width, width),
        ("attention_head_size", raw.attention_head_size or width // heads, width // heads),
    ):
        if value != allowed:
            raise CheckpointError(
                f"{origin}: {key} is {value}, which is not supported; supported: {allowed}"
            )
    furthest = raw.max_relative_positions
    furthest = raw.max_position_embeddings if furthest < 1 else furthest
    if raw.position_buckets == 1:
        raise CheckpointError(f"{origin}: position_buckets is 1; distances need 2 at least, or -1")
    buckets = raw.position_buckets if raw.position_buckets > 0 else None
    return Deberta(
        **fields,
        layer_norm_eps=raw.layer_norm_eps,
        max_position_embeddings=raw.max_position_embeddings,
        type_vocab_size=max(raw.type_vocab_size, 0),
        parts=_parts(raw.pos_att_type, origin),
        span=buckets or furthest,
        buckets=buckets,
        furthest=furthest,
        shared=raw.share_att_key,
        absolute=raw.position_biased_input,
        normed="layer_norm" in _words(raw.norm_rel_ebd),
        convolution=_convolution(raw, origin),
    )


def _convolution(raw: _Config, origin: str) -> Convolution | None:
    """There is none where it is of no width; its other keys are not looked at then."""
    if raw.conv_kernel_size < 1:
        return None
    for key, wrong, expected in (
        ("conv_kernel_size", raw.conv_kernel_size % 2 == 0, "an odd number"),
        ("conv_groups", raw.hidden_size % raw.conv_groups, f"a divisor of {raw.hidden_size}"),
        ("conv_act", raw.conv_act not in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    ):
        if wrong:
            raise CheckpointError(f"{origin}: {key} is {getattr(raw, key)!r}; expected {expected}")
    return Convolution(raw.conv_kernel_size, raw.conv_groups, raw.conv_act)


def _parts(pos_att_type: list[str] | str | None, origin: str) -> frozenset[str]:
    words = _words(pos_att_type) if isinstance(pos_att_type, str) else pos_att_type or []
    unknown = sorted(set(words) - {"c2p", "p2c", ""})
    if unknown:
        raise CheckpointError(
            f"{origin}: pos_att_type holds {unknown[0]!r}; supported: c2p and p2c"
        )
    return frozenset(words) - {""}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.lower().split("|")]
