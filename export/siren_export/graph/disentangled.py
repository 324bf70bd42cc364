"""Disentangled attention (arXiv 2006.03654): scores of content, and of content with distances.

    scores[i, j] = (q[i] k[j] + q[i] keys[i - j] + k[j] queries[i - j]) / sqrt(parts * head_dim)

Each query is multiplied with the keys of all distances from sequence - 1 down to -sequence, in
that order: distance i - j then stands at sequence - 1 - i + j of row i. In rows one element
shorter, each begins one further to the left, and j stands at its place: a reshape does what would
be a lookup of sequence^2 elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .builder import FLOAT, GraphBuilder


@dataclass(frozen=True)
class Distances:
    """What the blocks share: rows of the tables of distances, and which keys are seen.

    Attributes:
        down, up: the rows for distances from sequence - 1 to -sequence, and for their opposites,
            int64 [2 * sequence].
        length: the sequence, int64 [1].
        hidden: what is added to the scores, float32 [batch, 1, 1, sequence]: 0, or the lowest
            number of the compute dtype where a key is padding.
    """

    down: ir.Value
    up: ir.Value
    length: ir.Value
    hidden: ir.Value

    @staticmethod
    def author(
        g: GraphBuilder, input_ids: ir.Value, attention_mask: ir.Value, rows: np.ndarray
    ) -> Distances:
        """Author them for a text.

        Args:
            rows: of the tables, for each distance from n to -n, int64 [2 * n + 1], n being the
                longest sequence.
        """
        longest = len(rows) // 2
        with g.scope("distances"):
            length = g.op("Gather", g.op("Shape", input_ids), g.const([1]))

            def around(table: ir.Value) -> ir.Value:
                """The 2 * sequence rows from that of sequence - 1, or of 1 - sequence, on."""
                first = g.op("Sub", g.const([longest + 1]), length)
                last = g.op("Add", g.const([longest + 1]), length)
                return g.op("Slice", table, first, last, g.const([0]))

            down = around(g.table("down", rows))
            up = around(g.table("up", np.ascontiguousarray(rows[::-1])))
            keys = g.op("Unsqueeze", g.cast(attention_mask, ir.DataType.BOOL), g.const([1, 2]))
            lowest = float(g.compute.min)
            hidden = g.op("Where", keys, g.const(0.0, FLOAT), g.const(lowest, FLOAT))
        return Distances(down, up, length, hidden)


def disentangled_attention(
    g: GraphBuilder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    distances: Distances,
    *,
    heads: int,
    head_dim: int,
    keys: ir.Value | None,
    queries: ir.Value | None,
) -> ir.Value:
    """Attention of every query to every key that is no padding.

    Args:
        q, k, v: [batch, sequence, heads * head_dim].
        keys, queries: of distances [rows, heads * head_dim]; None where they are not looked at.

    Returns:
        [batch, sequence, heads * head_dim].
    """
    parts = 1 + (keys is not None) + (queries is not None)
    scale = g.const(float((parts * head_dim) ** -0.5), g.compute)
    split = g.const([0, 0, heads, head_dim])

    def heads_first(x: ir.Value) -> ir.Value:
        return g.op("Transpose", g.op("Reshape", x, split), perm=[0, 2, 1, 3])

    def of_distances(x: ir.Value, table: ir.Value, rows: ir.Value) -> ir.Value:
        """x [batch, heads, sequence, head_dim] with each distance: [.., sequence, sequence]."""
        # Of as many axes as x: ONNX Runtime 1.32 crashes on float16 products of 4 and 3.
        y = g.op("Reshape", g.op("Gather", table, rows), g.const([1, -1, heads, head_dim]))
        found = g.op("MatMul", x, g.op("Transpose", y, perm=[0, 2, 3, 1]))
        return _aligned(g, found, distances.length)

    q, k, v = heads_first(g.op("Mul", q, scale)), heads_first(k), heads_first(v)
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if keys is not None:
        scores = g.op("Add", scores, of_distances(q, keys, distances.down))
    if queries is not None:
        found = of_distances(g.op("Mul", k, scale), queries, distances.up)
        scores = g.op("Add", scores, g.op("Transpose", found, perm=[0, 1, 3, 2]))
    scores = g.op("Add", g.to_float(scores), distances.hidden)
    y = g.op("MatMul", g.to_compute(g.op("Softmax", scores, axis=-1)), v)
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    return g.op("Reshape", y, g.const([0, 0, heads * head_dim]))


def _aligned(g: GraphBuilder, x: ir.Value, length: ir.Value) -> ir.Value:
    """[.., sequence, 2 * sequence] to [.., sequence, sequence]: row i from sequence - 1 - i on."""
    one, axis = g.const([1]), g.const([2])
    shorter = g.op("Sub", g.op("Add", length, length), one)
    start = g.op("Sub", length, one)
    stop = g.op("Add", start, g.op("Mul", length, shorter))
    flat = g.op("Reshape", x, g.const([0, 0, -1]))
    flat = g.op("Slice", flat, start, stop, axis)
    shape = g.op("Concat", g.const([0, 0]), length, shorter, axis=0)
    rows = g.op("Reshape", flat, shape)
    return g.op("Slice", rows, g.const([0]), length, g.const([3]))
