"""The mean over tokens: of a whole text, of spans of it, and of every prefix of a growing one.

    pooled = concat over blocks l of mean over real tokens of states[l], the selected channels

In float32 at every precision.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siren_export.graph.builder import FLOAT, GraphBuilder

Channels = Mapping[int, NDArray[np.int64]]  # block -> those that are read, as `Taps` has them


def mean(
    g: GraphBuilder, channels: Channels, states: Mapping[int, ir.Value], attention_mask: ir.Value
) -> ir.Value:
    """Mean over real tokens of the selected channels, concatenated.

    Args:
        states: block -> float32 [batch, sequence, hidden].
        attention_mask: int64 [batch, sequence], 1 for real tokens.

    Returns:
        float32 [batch, n_features].
    """
    with g.scope("pooling"):
        mask = g.cast(attention_mask, FLOAT)
        tokens = g.op("ReduceSum", mask, g.const([1]), name="tokens", keepdims=1)
        row = g.op("Unsqueeze", mask, g.const([1]))  # [batch, 1, sequence]
        features = g.op("Squeeze", _sums(g, channels, states, row), g.const([1]))
        return g.op("Div", features, tokens, name="mean")


def span_means(
    g: GraphBuilder, channels: Channels, states: Mapping[int, ir.Value], spans: ir.Value
) -> ir.Value:
    """The same mean over the tokens of each of a text's spans.

    Args:
        states: block -> float32 [batch, sequence, hidden].
        spans: float32 [batch, spans, sequence], 1 for the tokens of each, which has some.

    Returns:
        float32 [batch x spans, n_features], text by text.
    """
    with g.scope("pooling"):
        tokens = g.op("ReduceSum", spans, g.const([2]), name="tokens", keepdims=1)
        means = g.op("Div", _sums(g, channels, states, spans), tokens)
        features = sum(selected.size for selected in channels.values())
        return g.op("Reshape", means, g.const([-1, features]), name="means")


def _sums(
    g: GraphBuilder, channels: Channels, states: Mapping[int, ir.Value], rows: ir.Value
) -> ir.Value:
    """Sums of the selected channels over the tokens of rows, [batch, rows, sequence]."""
    sums = []
    for block, selected in channels.items():
        with g.scope(f"layers.{block}"):
            total = g.op("MatMul", rows, states[block], name="sum")
            sums.append(g.op("Gather", total, g.table("channels", selected), axis=2))
    return g.op("Concat", *sums, axis=2)


def running_mean(
    g: GraphBuilder,
    channels: Channels,
    states: Mapping[int, ir.Value],
    feature_sum: ir.Value,
    feature_count: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """The mean over each prefix of a chunk, what was summed before it included.

    Args:
        states: block -> float32 [batch, chunk, hidden].
        feature_sum: float32 [batch, n_features], over the tokens before the chunk.
        feature_count: int64 [batch], how many tokens those are.

    Returns:
        The sums and the means, float32 [batch, chunk, n_features].
    """
    with g.scope("pooling"):
        chosen = []
        for block, selected in channels.items():
            with g.scope(f"layers.{block}"):
                chosen.append(g.op("Gather", states[block], g.table("channels", selected), axis=2))
        features = g.op("Concat", *chosen, axis=2)
        before = g.op("Unsqueeze", feature_sum, g.const([1]))
        sums = g.op("Add", g.op("CumSum", features, g.const(1)), before, name="sums")
        length = g.op("Gather", g.op("Shape", features), g.const(1))
        counts = g.op("Range", g.const(1), g.op("Add", length, g.const(1)), g.const(1))
        counts = g.op("Add", g.op("Unsqueeze", feature_count, g.const([1])), counts)
        counts = g.op("Unsqueeze", g.cast(counts, FLOAT), g.const([2]))  # [batch, chunk, 1]
        return sums, g.op("Div", sums, counts, name="means")
