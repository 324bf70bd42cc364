"""Rotary position embedding (RoFormer, arXiv 2104.09864): its frequencies, tables and use."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from .builder import GraphBuilder
from .cache import KeyValueCache
from .weights import Weight, computed

RopeKind = Literal["default", "linear", "llama3", "longrope"]


@dataclass(frozen=True)
class Rope:
    """How angles go with positions; the factors are those of "linear" and "llama3".

    `factors` are of "longrope" (arXiv 2402.13753): what divides each frequency; `scale` is of the
    cosines and sines.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    factors: tuple[float, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True)
class Rotary:
    """The rotary tables [positions, channels / 2] and each token's position [batch, sequence].

    `partial` is how many channels of a head turn, the first ones; None: all.
    """

    cos: ir.Value
    sin: ir.Value
    positions: ir.Value
    partial: int | None = None

    def rotate(self, g: GraphBuilder, x: ir.Value, heads: int) -> ir.Value:
        """Queries or keys [batch, sequence, heads * head_dim], turned by their positions."""
        attributes = {"num_heads": heads}
        if self.partial is not None:
            attributes["rotary_embedding_dim"] = self.partial
        inputs = x, self.cos, self.sin, self.positions
        return g.op("RotaryEmbedding", *inputs, name=None, outputs=1, **attributes)


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Rotary angular frequencies, float32 [head_dim / 2].

    "linear" divides them by the factor (arXiv 2306.15595); "llama3" divides the low ones only and
    blends in between, as Llama 3.1 was trained; "longrope" divides each by its own.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.asarray(1.0 / np.float32(rope.theta) ** exponents, np.float32)
    if rope.kind == "linear":
        frequencies = frequencies / np.float32(rope.factor)
    elif rope.kind == "llama3":
        turns = rope.original_max_position_embeddings * frequencies / (2 * np.pi)
        span = rope.high_freq_factor - rope.low_freq_factor
        keep = np.clip((turns - rope.low_freq_factor) / span, 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / rope.factor
    elif rope.kind == "longrope":
        frequencies = np.divide(frequencies, np.array(rope.factors), dtype=np.float32)
    return np.asarray(frequencies, np.float32)


def rotary_tables(
    g: GraphBuilder,
    rope: Rope,
    head_dim: int,
    input_ids: ir.Value,
    max_length: int,
    cache: KeyValueCache | None = None,
    partial: int | None = None,
) -> Rotary:
    """Author the tables, in the compute dtype but made in float32, and the tokens' positions.

    Args:
        input_ids: int64 [batch, sequence].
        max_length: the longest sequence, in tokens, those in the cache included.
        cache: what the tokens before `input_ids` left, where there are some.
        partial: as of `Rotary`.
    """
    frequencies = inverse_frequencies(rope, head_dim if partial is None else partial)

    def table(function: np.ufunc) -> Weight:
        def make() -> np.ndarray:
            angles = np.outer(np.arange(max_length, dtype=np.float32), frequencies)
            values = np.asarray(function(angles)) * np.float32(rope.scale)
            return np.asarray(values.astype(g.compute.numpy()))

        return computed(g.compute, (max_length, len(frequencies)), make)

    # Tables of another length are other weights of the bundle.
    with g.scope("rotary" if cache is None else "rotary_context"):
        if cache is None:
            shape = g.op("Shape", input_ids)
            length = g.op("Gather", shape, g.const(1))
            positions = g.op("Range", g.const(0), length, g.const(1))
            positions = g.op("Expand", positions, shape, name="positions")
        else:
            positions = cache.positions(g, input_ids, max_length)
        cos, sin = g.weight("cos", table(np.cos)), g.weight("sin", table(np.sin))
        return Rotary(cos, sin, positions, partial)
