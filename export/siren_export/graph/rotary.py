"""Rotary position embedding (RoFormer, arXiv 2104.09864): its frequencies, tables and use."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from .builder import GraphBuilder
from .cache import KeyValueCache
from .weights import Weight, computed

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rope:
    """How angles go with positions.

    Attributes:
        factor: of "linear", "llama3" and "yarn".
        low_freq_factor, high_freq_factor: of "llama3".
        original_max_position_embeddings: the context before it was made longer.
        factors: of "longrope" (arXiv 2402.13753), what divides each frequency.
        beta_fast, beta_slow, truncate: of "yarn".
        scale: of the cosines and sines, of "yarn" and "longrope".
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    factors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
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
    blends in between, as Llama 3.1 was trained; so does "yarn" between other bounds; "longrope"
    divides each by its own.
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
    elif rope.kind == "yarn":
        divided = _divided_by_yarn(rope, head_dim)
        frequencies = (1 - divided) * frequencies + divided * frequencies / np.float32(rope.factor)
    elif rope.kind == "longrope":
        frequencies = np.divide(frequencies, np.array(rope.factors), dtype=np.float32)
    return np.asarray(frequencies, np.float32)


def _divided_by_yarn(rope: Rope, head_dim: int) -> np.ndarray:
    """How much of each frequency is divided: 0 of the high ones, 1 of the low, a ramp between.

    It begins at the pair of channels that turns `beta_fast` times over the original context, and
    ends at the one that turns `beta_slow` times (YaRN, arXiv 2309.00071, section 3.2); where these
    are cut off is transformers' way.
    """

    def pair_of(turns: float) -> float:
        context = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(context) / (2 * math.log(rope.theta))

    first, last = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    last = last + 0.001 if first == last else last
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    ramp: np.ndarray = np.clip((pairs - np.float32(first)) / np.float32(last - first), 0, 1)
    return ramp


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
