"""How the neurons of a stream's tokens become the one vector that the head reads.

"mean" is SIREN's own (arXiv 2604.18519): the mean over all tokens, which is what `Guard.score`
computes. In a long benign text it averages a late turn to harm away; "window", the mean over the
last tokens, and "ema", their exponential moving average, do not.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.bundle.arguments import check_choice, whole_number

AggregationName = Literal["mean", "window", "ema"]


class Aggregation(Protocol):
    """Turns neurons into pooled rows. It keeps no state: the caller keeps a row a token.

    Of the rows before, it looks at the last `span` at most.
    """

    @property
    def span(self) -> int:
        """Tokens that it reaches back, or that its weights have their centre half of back."""

    def fold(self, before: FloatArray, neurons: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Take a chunk in.

        Args:
            before: [tokens, n_features], the rows kept for the tokens before it.
            neurons: [chunk, n_features], not weighted by layer.

        Returns:
            The rows to keep for the chunk, and what the head reads at each of its tokens, both
            [chunk, n_features].
        """


@dataclass(frozen=True)
class Window:
    """The mean over the last `span` tokens."""

    span: int

    def fold(self, before: FloatArray, neurons: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Keep the neurons; read their moving mean."""
        known = before[-(self.span - 1) :] if self.span > 1 else before[:0]
        sums = np.cumsum(np.concatenate([known, neurons]), axis=0, dtype=np.float64)
        ends = np.arange(len(known), len(sums))
        starts = np.maximum(ends - self.span, -1)
        counts = (ends - starts)[:, None]
        pooled = (sums[ends] - np.where(starts[:, None] < 0, 0.0, sums[starts])) / counts
        return neurons, pooled.astype(np.float32)


@dataclass(frozen=True)
class Ema:
    """The exponential moving average whose weights have their centre `span` / 2 tokens back."""

    span: int

    def fold(self, before: FloatArray, neurons: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Keep the average; read it."""
        last = before[-1] if len(before) else None
        rows = moving_average(last, neurons, np.float32(2 / (self.span + 1)))
        return rows, rows


def moving_average(
    last: FloatArray | None, rows: FloatArray, weight: FloatArray | np.float32
) -> FloatArray:
    """Return the exponential moving average at each of some rows, [rows, width].

    Args:
        last: [width], the average before them; None where they are the first.
        weight: of a new row in the average, one for all columns or [width].
    """
    averages = np.empty_like(rows)
    for i, row in enumerate(rows):
        last = averages[i] = row if last is None else last + weight * (row - last)
    return averages


def aggregation_of(name: AggregationName, span: int) -> Aggregation | None:
    """Return the aggregation of that name; None for the mean, which the graph itself computes.

    Raises:
        InputError: no such name, or `span` is below 1.
    """
    check_choice("aggregation", name, get_args(AggregationName))
    span = whole_number("span", span, 1)
    return {"mean": None, "window": Window(span), "ema": Ema(span)}[name]
