"""The encoder family: BERT (arXiv 1810.04805), from token ids to the tapped states.

    hidden = norm(word[input_ids] + position + token_type[0])
    for each block:
        hidden = norm(hidden + output(attention(q, k, v)))
        hidden = norm(hidden + output(act(intermediate(hidden))))

In float16 the residual stream and the norms stay in float32, as in the decoders.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from siren_export.graph.activations import activation
from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_export.graph.taps import Taps
from siren_export.graph.weights import CheckpointWeights, Weight

from .config import EncoderConfig


def author_encoder(
    g: GraphBuilder,
    config: EncoderConfig,
    weights: CheckpointWeights,
    input_ids: ir.Value,
    attention_mask: ir.Value,
    taps: Taps,
    max_length: int,
) -> dict[int, ir.Value]:
    """Author the blocks up to the deepest tap.

    Args:
        input_ids: int64 [batch, sequence].
        attention_mask: int64 [batch, sequence], 1 for real tokens.
        taps: which blocks are read, and what of them.
        max_length: the longest sequence, in tokens.

    Returns:
        block -> tapped float32 states [batch, sequence, hidden].
    """
    hidden = _embeddings(g, config, weights, input_ids, max_length)
    visible = _visible_keys(g, attention_mask)

    states: dict[int, ir.Value] = {}
    for block in range(taps.deepest + 1):
        with g.scope(f"layer.{block}"):
            x = _attention(g, config, weights, g.to_compute(hidden), visible, block)
            hidden = g.op("Add", hidden, g.to_float(x), name="attention_residual")
            name = f"encoder.layer.{block}.attention.output.LayerNorm"
            hidden = _layer_norm(g, config, weights, hidden, name)

            mlp = g.to_float(_mlp(g, config, weights, g.to_compute(hidden), block))
            if taps.reads_mlp(block):
                states[block] = mlp
                if block == taps.deepest:
                    break
            hidden = g.op("Add", hidden, mlp, name="mlp_residual")
            name = f"encoder.layer.{block}.output.LayerNorm"
            hidden = _layer_norm(g, config, weights, hidden, name)
        if taps.reads_residual(block):
            states[block] = hidden
    return states


def _embeddings(
    g: GraphBuilder,
    config: EncoderConfig,
    weights: CheckpointWeights,
    input_ids: ir.Value,
    max_length: int,
) -> ir.Value:
    with g.scope("embeddings"):
        shape = (config.vocab_size, config.hidden_size)
        words = weights.table("embeddings.word_embeddings.weight", shape, g.compute)
        hidden = g.to_float(g.op("Gather", g.weight("word_embeddings", words), input_ids))
        positions = g.weight("position_embeddings", _positions(config, weights, max_length))
        length = g.op("Gather", g.op("Shape", input_ids), g.const([1]))
        seen = g.op("Slice", positions, g.const([0]), length, g.const([0]))
        hidden = g.op("Add", hidden, seen)
        return _layer_norm(g, config, weights, hidden, "embeddings.LayerNorm")


def _positions(config: EncoderConfig, weights: CheckpointWeights, max_length: int) -> Weight:
    """Position embeddings plus token type 0, the only one a guard uses, float32."""
    width = config.hidden_size
    position = weights.table(
        "embeddings.position_embeddings.weight", (config.max_position_embeddings, width), FLOAT
    )
    token_type = weights.table(
        "embeddings.token_type_embeddings.weight", (config.type_vocab_size, width), FLOAT
    )

    def blocks() -> Iterator[np.ndarray]:
        rows = np.concatenate(list(position.blocks()))[:max_length]
        yield rows + next(token_type.blocks())[0]

    return Weight(FLOAT, (max_length, width), blocks)


def _visible_keys(g: GraphBuilder, attention_mask: ir.Value) -> ir.Value:
    """bool [batch, 1, sequence, sequence]: every query sees the real tokens.

    ONNX Runtime's Attention repeats a mask over heads, but not over queries.
    """
    with g.scope("visible_keys"):
        shape = g.op("Shape", attention_mask)
        batch = g.op("Gather", shape, g.const([0]))
        length = g.op("Gather", shape, g.const([1]))
        keys = g.op("Unsqueeze", g.cast(attention_mask, ir.DataType.BOOL), g.const([1, 2]))
        return g.op("Expand", keys, g.op("Concat", batch, g.const([1]), length, length, axis=0))


def _attention(
    g: GraphBuilder,
    config: EncoderConfig,
    weights: CheckpointWeights,
    x: ir.Value,
    visible: ir.Value,
    block: int,
) -> ir.Value:
    """Bidirectional attention: x [batch, sequence, hidden] to the same shape."""
    prefix = f"encoder.layer.{block}.attention"
    width = config.hidden_size
    with g.scope("attention"):
        q, k, v = (
            _linear(g, weights, x, f"{prefix}.self.{part}", (width, width))
            for part in ("query", "key", "value")
        )
        heads = config.attention_heads
        y = g.op(
            "Attention",
            q,
            k,
            v,
            visible,
            scale=(width // heads) ** -0.5,
            q_num_heads=heads,
            kv_num_heads=heads,
        )
        return _linear(g, weights, y, f"{prefix}.output.dense", (width, width))


def _mlp(
    g: GraphBuilder, config: EncoderConfig, weights: CheckpointWeights, x: ir.Value, block: int
) -> ir.Value:
    prefix = f"encoder.layer.{block}"
    wide = (config.intermediate_size, config.hidden_size)
    with g.scope("mlp"):
        x = _linear(g, weights, x, f"{prefix}.intermediate.dense", wide)
        x = activation(g, config.hidden_act, x)
        return _linear(g, weights, x, f"{prefix}.output.dense", wide[::-1])


def _linear(
    g: GraphBuilder, weights: CheckpointWeights, x: ir.Value, name: str, shape: tuple[int, int]
) -> ir.Value:
    """A linear layer of the checkpoint, its matrix [out, in]."""
    matrix = weights.matrix(f"{name}.weight", shape, g.compute)
    bias = weights.vector(f"{name}.bias", shape[0], g.compute)
    label = name.removesuffix(".dense").rpartition(".")[2]
    return g.linear(x, label, matrix, bias)


def _layer_norm(
    g: GraphBuilder, config: EncoderConfig, weights: CheckpointWeights, x: ir.Value, name: str
) -> ir.Value:
    """LayerNorm (arXiv 1607.06450) over the last axis, in float32."""
    scale = weights.vector(f"{name}.weight", config.hidden_size, FLOAT)
    bias = weights.vector(f"{name}.bias", config.hidden_size, FLOAT)
    with g.scope("LayerNorm"):
        return g.op(
            "LayerNormalization",
            x,
            g.weight("weight", scale),
            g.weight("bias", bias),
            epsilon=config.layer_norm_eps,
            axis=-1,
        )
