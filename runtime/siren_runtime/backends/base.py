"""What a backend is: something that runs a bundle's score graph, or its streaming graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.int64]
CacheArray = npt.NDArray[Any]  # float32 or float16
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outputs:
    """What the score graph gives for one batch."""

    score: FloatArray  # [batch], the probability of harm
    logits: FloatArray  # [batch, classes]
    features: FloatArray  # [batch, n_features], pooled, selected, layer-weighted neurons


class Backend(Protocol):
    """Runs the score graph; safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """What the graph runs on: "cpu", "cuda", "tensorrt" or "tensorrt-rtx"."""

    @property
    def token_budget(self) -> int:
        """How many tokens a batch should hold at most, padding included, to be quick."""

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded `input_ids` [batch, sequence]; the mask is 1 on real tokens.

        Raises:
            BackendError: the engine failed or gave outputs of another shape.
        """


@dataclass(frozen=True)
class CacheLayout:
    """One token's keys and values: `buffers` arrays [batch, heads, tokens, dim] of `dtype`."""

    buffers: int
    heads: int
    dim: int
    dtype: npt.DTypeLike

    @property
    def bytes_per_token(self) -> int:
        return self.buffers * self.heads * self.dim * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class StreamOutputs:
    """What the streaming graph gives for one chunk of each row."""

    score: FloatArray  # [batch, chunk], of the prefix that ends in each token
    logits: FloatArray  # [batch, chunk, classes]
    feature_sums: FloatArray  # [batch, chunk, n_features], not weighted by layer
    present: list[CacheArray]  # the chunk's keys and values, in the order of the past


class StreamBackend(Protocol):
    """Runs the streaming graph and the head alone; safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """What the graphs run on, as `Backend.name`."""

    @property
    def token_budget(self) -> int:
        """As `Backend.token_budget`."""

    @property
    def layout(self) -> CacheLayout:
        """The shape of the key/value cache."""

    @property
    def features(self) -> int:
        """The number of neurons that the head reads."""

    @property
    def max_tokens(self) -> int:
        """The tokens that a stream may hold."""

    @property
    def max_chunk(self) -> int:
        """The tokens of a stream that one step reads at most, to be quick or at all."""

    def step(
        self,
        input_ids: TokenArray,
        past_lengths: TokenArray,
        past: Sequence[CacheArray],
        feature_sum: FloatArray,
        feature_count: TokenArray,
        *,
        present: bool = True,
    ) -> StreamOutputs:
        """Read `input_ids` [batch, chunk] after the first `past_lengths` [batch] tokens of `past`.

        Args:
            feature_sum: [batch, n_features], over `feature_count` [batch] tokens.
            present: whether to return the chunk's keys and values, which costs a copy.

        Raises:
            BackendError: the engine failed.
        """

    def head(self, pooled: FloatArray) -> Outputs:
        """Evaluate the head on `pooled` [batch, n_features], not weighted by layer.

        Raises:
            BackendError: the engine failed.
        """
