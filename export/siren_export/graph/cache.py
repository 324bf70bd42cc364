"""Attention over a key/value cache: a decoder reads a chunk of new tokens after those it holds.

    scores = concat(q @ past_keys, q @ keys) * scale
    y      = softmax(scores) @ concat(past_values, values)

The two halves are multiplied apart, so that neither the graph nor its caller ever copies the
cache: the past goes in as a buffer that may be longer than what it holds (`past_lengths` says how
much counts), and out come the chunk's own keys and values, which the caller writes behind it.
Rows may therefore hold pasts of different lengths. Where a block has a window, its buffer may be a
ring, in which token p lies at p modulo the buffer's length: keys are rotated already, so their
order does not matter, only which of them are seen. The products are [batch, kv_heads, group, ...]
without a copy of the shared heads; in ONNX Runtime, single tokens then read the cache as a
vector-matrix product, several times faster at length than the standard Attention operator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from siren_runtime.bundle.graphs import PAST, cache_name

from .builder import FLOAT, GraphBuilder


@dataclass
class KeyValueCache:
    """The cache of a graph under way.

    Attributes:
        heads, kv_heads, head_dim: of queries, of keys and values, and the channels of each.
        lengths: int64 [batch], how many tokens of each row's past count.
        past: input name -> keys or values of a block [batch, kv_heads, past, head_dim], in the
            compute dtype.
        present: output name -> the chunk's keys or values [batch, kv_heads, chunk, head_dim], in
            the compute dtype, filled as blocks are authored.
        starts: the blocks at which the graph is to be cut. Masks and sizes, which blocks share,
            are authored anew behind each.
    """

    heads: int
    kv_heads: int
    head_dim: int
    lengths: ir.Value
    past: Mapping[str, ir.Value]
    present: dict[str, ir.Value] = field(default_factory=dict)
    starts: Sequence[int] = ()
    _shared: dict[tuple[int | None, int], tuple[ir.Value, ir.Value, ir.Value]] = field(
        default_factory=dict
    )

    def positions(self, g: GraphBuilder, input_ids: ir.Value, limit: int) -> ir.Value:
        """Each token's position [batch, chunk]; padding beyond `limit` stays inside the tables."""
        length = g.op("Gather", g.op("Shape", input_ids), g.const(1))
        chunk = g.op("Range", g.const(0), length, g.const(1))
        positions = g.op("Add", g.op("Unsqueeze", self.lengths, g.const([1])), chunk)
        return g.op("Min", positions, g.const(limit - 1), name="positions")

    def attend(
        self,
        g: GraphBuilder,
        block: int,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        *,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> ir.Value:
        """Grouped-query causal attention; see `causal_attention`.

        Args:
            q: [batch, chunk, heads * head_dim], rotated.
            k, v: [batch, chunk, kv_heads * head_dim]; k rotated.

        Returns:
            [batch, chunk, heads * head_dim].
        """
        group = self.heads // self.kv_heads
        # Scaled before the transpose: next to the product, ONNX Runtime would fuse the two, and
        # has no vector-matrix product that scales.
        q = g.op("Mul", q, g.const(float(scale), g.compute))
        q, k, v = (self._heads_first(g, x, n) for x, n in ((q, group), (k, 1), (v, 1)))
        for part, new in (("key", k), ("value", v)):
            self.present[cache_name("present", block, part)] = g.op("Squeeze", new, g.const([2]))
        past_k, past_v = (
            g.op("Unsqueeze", self.past[cache_name(PAST, block, part)], g.const([2]))
            for part in ("key", "value")
        )
        alike = window, sum(start <= block for start in self.starts)
        if alike not in self._shared:
            masks = (
                self._all_masks(g, past_k, k)
                if window is None
                else self._window_masks(g, past_k, k, window)
            )
            sizes = g.op("Concat", _size(g, past_k, 3), _size(g, k, 3), axis=0)
            self._shared[alike] = *masks, sizes
        past_mask, chunk_mask, sizes = self._shared[alike]

        def scores(keys: ir.Value, mask: ir.Value) -> ir.Value:
            keys = g.op("Transpose", keys, perm=[0, 1, 2, 4, 3])
            found = g.to_float(g.op("MatMul", q, keys))
            if softcap is not None:
                bent = g.op("Tanh", g.op("Div", found, g.const(softcap, FLOAT)))
                found = g.op("Mul", bent, g.const(softcap, FLOAT))
            return g.op("Add", found, mask)

        both = g.op("Concat", scores(past_k, past_mask), scores(k, chunk_mask), axis=-1)
        weights = g.to_compute(g.op("Softmax", both, axis=-1))
        on_past, on_chunk = g.split(weights, sizes, axis=-1)
        y = g.op("Add", g.op("MatMul", on_past, past_v), g.op("MatMul", on_chunk, v))
        y = g.op("Transpose", y, perm=[0, 3, 1, 2, 4])
        return g.op("Reshape", y, g.const([0, 0, self.heads * self.head_dim]))

    def _heads_first(self, g: GraphBuilder, x: ir.Value, group: int) -> ir.Value:
        """[batch, chunk, channels] to [batch, kv_heads, group, chunk, head_dim]."""
        shape = g.const([0, 0, self.kv_heads, group, self.head_dim])
        return g.op("Transpose", g.op("Reshape", x, shape), perm=[0, 2, 3, 1, 4])

    def _all_masks(
        self, g: GraphBuilder, past: ir.Value, chunk: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Float32 0 where a key is seen and -inf elsewhere: [batch, 1, 1, 1, past], [chunk, chunk].

        Authored with the first block that needs them, for all up to a cut.
        """
        seen, unseen = g.const(0.0, FLOAT), g.const(-np.inf, FLOAT)
        zero, one = g.const(0), g.const(1)
        slots = g.op("Range", zero, g.op("Squeeze", _size(g, past, 3)), one)
        lengths = g.op("Reshape", self.lengths, g.const([-1, 1, 1, 1, 1]))
        past_mask = g.op("Where", g.op("Less", slots, lengths), seen, unseen)
        keys = g.op("Range", zero, g.op("Squeeze", _size(g, chunk, 3)), one)
        queries = g.op("Unsqueeze", keys, g.const([1]))
        causal = g.op("LessOrEqual", keys, queries)
        return past_mask, g.op("Where", causal, seen, unseen)

    def _window_masks(
        self, g: GraphBuilder, past: ir.Value, chunk: ir.Value, window: int
    ) -> tuple[ir.Value, ir.Value]:
        """As `_all_masks`, [batch, 1, 1, chunk, past] and [chunk, chunk].

        Slot s of a ring of r holds the last position p < length for which p modulo r is s.
        """
        seen, unseen, width = g.const(0.0, FLOAT), g.const(-np.inf, FLOAT), g.const(window)
        zero, one = g.const(0), g.const(1)
        ring = g.op("Squeeze", _size(g, past, 3))
        slots = g.op("Range", zero, ring, one)
        lengths = g.op("Reshape", self.lengths, g.const([-1, 1, 1, 1, 1]))
        behind = g.op("Sub", g.op("Sub", lengths, one), slots)
        held = g.op("Add", slots, g.op("Mul", g.op("Div", behind, ring), ring))
        keys = g.op("Range", zero, g.op("Squeeze", _size(g, chunk, 3)), one)
        queries = g.op("Unsqueeze", keys, g.const([1]))
        near = g.op("Less", g.op("Sub", g.op("Add", lengths, queries), held), width)
        near = g.op("And", near, g.op("Less", slots, lengths))
        past_mask = g.op("Where", near, seen, unseen)
        back = g.op("Sub", queries, keys)
        near = g.op("And", g.op("Less", back, width), g.op("GreaterOrEqual", back, zero))
        return past_mask, g.op("Where", near, seen, unseen)


def _size(g: GraphBuilder, x: ir.Value, axis: int) -> ir.Value:
    """One dimension of `x`, int64 [1]."""
    return g.op("Shape", x, start=axis, end=axis + 1)
