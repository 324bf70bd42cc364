"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599)."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

_LARGEST = 20.0  # and its inverse the smallest


def temperature_of(
    logits: NDArray[np.floating], labels: NDArray[np.int64], weights: NDArray[np.floating]
) -> float:
    """Return the temperature of the least cross-entropy, between 1/20 and 20.

    Args:
        logits: float32 [rows, classes].
        labels: int64 [rows].
        weights: float32 [rows], of the rows.
    """
    exact = logits.astype(np.float64)
    margins = exact - np.take_along_axis(exact, labels[:, None], axis=1)

    def loss(log_temperature: float) -> float:
        each = np.logaddexp.reduce(margins / math.exp(log_temperature), axis=1)
        return float(np.average(each, weights=weights))

    limit = math.log(_LARGEST)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
    return math.exp(found.x)
