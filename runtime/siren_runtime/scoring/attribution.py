"""How much each feature of a text moved a head's output, against the features of another text.

Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365): the gradient's mean on the way
from the baseline to the text, times the way. What the features get adds up to the difference of the
outputs, which is checked. Where the gradient is the same all the way, as in a linear head, that is
gradient times input, and exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from siren_runtime.backends.outputs import DoubleArray, FloatArray
from siren_runtime.errors import BackendError

# Features float32 [points, n_features] -> outputs [points], gradients [points, n_features].
Gradients = Callable[[FloatArray], tuple[DoubleArray, DoubleArray]]

_STEPS = (64, 256, 1024, 4096)
_BATCH = 64
_TOLERANCE = 2e-3  # of the difference of the outputs, or of one half


@dataclass(frozen=True)
class Attribution:
    """What the features got.

    Attributes:
        output, baseline: the head's outputs of the text and of the baseline.
        gradient: float64 [n_features], the mean gradient on the way.
        shares: float64 [n_features], which add up to `output` - `baseline`, but for `residual`.
        steps: gradients that were taken on the way; 1 where they are all the same.
    """

    output: float
    baseline: float
    gradient: DoubleArray
    shares: DoubleArray
    residual: float
    steps: int


def attribute(gradients: Gradients, features: FloatArray, baseline: FloatArray) -> Attribution:
    """Attribute the difference of the outputs of two texts to their features [n_features].

    Raises:
        BackendError: what the features get does not add up to it.
    """
    way = features.astype(np.float64) - baseline
    values, ends = gradients(_points(baseline, way, np.array([0.0, 0.5, 1.0])))
    start, _, stop = values.tolist()
    allowed = _TOLERANCE * max(abs(stop - start), 0.5)
    counts = (1,) if np.array_equal(ends[0], ends[2]) and np.array_equal(ends[0], ends[1]) else ()
    residual = 0.0
    for steps in (*counts, *_STEPS):
        gradient = _mean_gradient(gradients, baseline, way, steps)
        shares = gradient * way
        residual = stop - start - float(shares.sum())
        if abs(residual) <= allowed:
            return Attribution(stop, start, gradient, shares, residual, steps)
    raise BackendError(
        f"what the features get misses the difference of the outputs, {stop - start:.4g}, by "
        f"{residual:.2g} after {_STEPS[-1]} steps; give another baseline"
    )


def _mean_gradient(
    gradients: Gradients, baseline: FloatArray, way: DoubleArray, steps: int
) -> DoubleArray:
    """The mean over the middles of so many equal steps."""
    middles = (np.arange(steps) + 0.5) / steps
    total = np.zeros_like(way)
    for first in range(0, steps, _BATCH):
        _, found = gradients(_points(baseline, way, middles[first : first + _BATCH]))
        total += found.sum(axis=0)
    return total / steps


def _points(baseline: FloatArray, way: DoubleArray, places: DoubleArray) -> FloatArray:
    return (baseline + places[:, None] * way).astype(np.float32)
