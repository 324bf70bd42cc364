"""What graphs give for a batch, and what can be said of it before there is a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from siren_runtime.bundle.graphs import FEATURES, LOGITS, SCORE
from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.errors import BackendError

BoolArray = npt.NDArray[np.bool_]
CacheArray = npt.NDArray[Any]  # float32 or float16
DoubleArray = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]
TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HeadOutputs:
    """What a graph gives of one head for each row of a batch.

    Attributes:
        score: [batch], the probability of harm.
        logits: [batch, classes].
        features: [batch, n_features], pooled, selected, layer-weighted neurons.
    """

    score: FloatArray
    logits: FloatArray
    features: FloatArray


@dataclass(frozen=True)
class Outputs:
    """What the score graph gives for one batch, of each head in the order of the manifest.

    Attributes:
        score: [batch], features: [batch, n_features], logits: [batch, classes], all of the primary
            head.
        further: of the other heads, in their order.
    """

    score: FloatArray
    logits: FloatArray
    features: FloatArray
    further: tuple[HeadOutputs, ...] = ()

    @classmethod
    def of(cls, values: Sequence[FloatArray]) -> "Outputs":
        """Take what the outputs of the contract are, in its order."""
        first, *further = (HeadOutputs(*values[i : i + 3]) for i in range(0, len(values), 3))
        return cls(first.score, first.logits, first.features, tuple(further))

    @property
    def heads(self) -> tuple[HeadOutputs, ...]:
        """Those of each head, the primary one first."""
        return HeadOutputs(self.score, self.logits, self.features), *self.further

    def rows(self, rows: npt.NDArray[np.intp] | slice) -> "Outputs":
        """Those of some rows of the batch."""
        return Outputs.of([value[rows] for value in self.values])

    @property
    def values(self) -> list[FloatArray]:
        """The outputs in the order of the contract."""
        return [value for head in self.heads for value in (head.score, head.logits, head.features)]


@dataclass(frozen=True)
class StreamOutputs:
    """What the streaming graph gives for one chunk of each row, by the primary head."""

    score: FloatArray  # [batch, chunk], of the prefix that ends in each token
    logits: FloatArray  # [batch, chunk, classes]
    feature_sums: FloatArray  # [batch, chunk, neurons], not weighted by layer
    present: list[CacheArray]  # the chunk's keys and values, in the order of the past


def named_values(outputs: Outputs) -> dict[str, FloatArray]:
    """The outputs by what errors call them."""
    parts = SCORE, LOGITS, FEATURES
    return {
        f"{part} of further head {head}" if head else part: value
        for i, value in enumerate(outputs.values)
        for head, part in [(i // 3, parts[i % 3])]
    }


def not_finite(arrays: Mapping[str, npt.NDArray[np.floating[Any]]]) -> dict[int, str]:
    """Return the rows that hold a value which is not finite, and the first array that does.

    A comparison with NaN is false, so a score that is not finite would pass as safe.

    Args:
        arrays: name -> [rows, ...].
    """
    rows: dict[int, str] = {}
    for name, values in arrays.items():
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        for row in np.flatnonzero(~finite).tolist():
            rows.setdefault(row, name)
    return rows


def no_verdict(what: str) -> BackendError:
    """The error for a value that is not finite: `what` says which and of what text."""
    return BackendError(
        f"the engine's {what} is not finite, so there is no verdict; check the bundle with siren "
        "inspect --check, or export it in a higher precision"
    )


def pooled_rows(rows: FloatArray, counts: npt.NDArray[np.int64], head: HeadSpec) -> FloatArray:
    """Return what the head reads, given the `feature_sums` after the last of `counts` tokens.

    Args:
        rows: [batch, n_features].
        counts: [batch].
    """
    return (rows / counts[:, None]).astype(np.float32) if head.pools_mean else rows


def span_means(
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    *,
    before: FloatArray,
    last: FloatArray,
    first: FloatArray,
) -> FloatArray:
    """Return the mean of the neurons over each span and over the text's first token.

    Decoders put what all texts have on the first token (massive activations, arXiv 2402.17762), and
    a head has seen no mean without it.

    Args:
        starts, stops: [spans], the first token of each and the one behind its last.
        before, last: float32 [spans, neurons], the `feature_sums` before the first token of each,
            and after its last one.
        first: the neurons of the first token of each one's text, float32 [spans, neurons]; or
            [neurons], where all have one text.

    Returns:
        float32 [spans, neurons].
    """
    inner = (starts > 0)[:, None]
    counts = (stops - starts)[:, None] + inner
    means: FloatArray = last - before + np.where(inner, first, np.float32(0))
    means /= counts.astype(np.float32)
    return means


def neurons_of_chunk(rows: FloatArray, head: HeadSpec) -> FloatArray:
    """Return each token's neurons [chunk, n_features], given `feature_sums` that began at zero."""
    return np.diff(rows, axis=0, prepend=np.float32(0)) if head.pools_mean else rows
