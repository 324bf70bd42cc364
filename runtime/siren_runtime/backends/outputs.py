"""What graphs give for a batch, and what can be said of it before there is a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from siren_runtime.bundle.heads import HARMFUL, HeadSpec
from siren_runtime.errors import BackendError

CacheArray = npt.NDArray[Any]  # float32 or float16
FloatArray = npt.NDArray[np.float32]
TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Outputs:
    """What the score graph gives for one batch."""

    score: FloatArray  # [batch], the probability of harm
    logits: FloatArray  # [batch, classes]
    features: FloatArray  # [batch, n_features], pooled, selected, layer-weighted neurons


@dataclass(frozen=True)
class StreamOutputs:
    """What the streaming graph gives for one chunk of each row."""

    score: FloatArray  # [batch, chunk], of the prefix that ends in each token
    logits: FloatArray  # [batch, chunk, classes]
    feature_sums: FloatArray  # [batch, chunk, n_features], not weighted by layer
    present: list[CacheArray]  # the chunk's keys and values, in the order of the past


def tempered_scores(outputs: Outputs | StreamOutputs, temperature: float) -> FloatArray:
    """Return the scores, float32 of the shape of `outputs.score`, at a calibrated temperature.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599): the logits are divided by it before
    the softmax; at 1 the engine's own scores are returned. A score that is not finite stays so: it
    marks outputs that the engine did not write.
    """
    if temperature == 1.0:
        return outputs.score
    logits = outputs.logits / np.float32(temperature)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: FloatArray = shares[..., HARMFUL] / shares.sum(axis=-1)
    return np.where(np.isfinite(outputs.score), scores, outputs.score)


def precise_scores(outputs: Outputs, temperature: float) -> npt.NDArray[np.float64]:
    """Return the scores at a temperature in float64 [batch], which tells apart what float32 rounds
    to 1; NaN where the engine's own score is not finite.
    """
    logits = outputs.logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):  # of logits that are not finite
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: npt.NDArray[np.float64] = shares[:, HARMFUL] / shares.sum(axis=-1)
    return np.where(np.isfinite(outputs.score), scores, np.nan)


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


def neurons_of_chunk(rows: FloatArray, head: HeadSpec) -> FloatArray:
    """Return each token's neurons [chunk, n_features], given `feature_sums` that began at zero."""
    return np.diff(rows, axis=0, prepend=np.float32(0)) if head.pools_mean else rows
