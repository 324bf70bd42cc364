"""How much each pair of a polynomial head's neurons moved its output, against another text.

The term of second order (arXiv 2509.26238) is the sum over r of f[r] (u[r] x)^2, of standardized
features x: a sum over pairs, of M[i, j] x[i] x[j] with M[i, j] the sum over r of f[r] u[r, i]
u[r, j]. What a pair moved is the difference of its two products, which is exact; a neuron also
stands in a pair with itself. M is made in blocks of rows, and never held whole.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from siren_runtime.backends.outputs import DoubleArray
from siren_runtime.errors import BackendError

_ELEMENTS = 1 << 20  # of a block of the matrix of pairs
_TOLERANCE = 1e-3  # of the sum of the squares by themselves, or of one half


@dataclass(frozen=True)
class SecondOrder:
    """A head's term of second order, and two texts.

    Attributes:
        factors: float64 [rank].
        directions: float64 [rank, n_features].
        text, baseline: float64 [n_features], standardized features.
    """

    factors: DoubleArray
    directions: DoubleArray
    text: DoubleArray
    baseline: DoubleArray


def strongest_pairs(term: SecondOrder, moved: float, count: int) -> list[tuple[int, int, float]]:
    """The pairs that moved the term the most, either way, the strongest first.

    Args:
        moved: what the term moved by the engine, which all pairs together must add up to.
        count: how many to return.

    Returns:
        The places of two features, the first at most the second, and their share of `moved`, of
        pairs that moved it at all.

    Raises:
        BackendError: the pairs do not add up to `moved`.
    """
    size = term.text.size
    rows = max(1, _ELEMENTS // size)
    total = 0.0
    found: list[tuple[int, int, float]] = []
    for start in range(0, size, rows):
        shares = _shares(term, start, min(start + rows, size))
        total += float(shares.sum())
        first, second = np.divmod(_largest(shares, count), shares.shape[1])
        kept = zip(
            (first + start).tolist(),
            (second + start).tolist(),
            shares[first, second].tolist(),
            strict=True,
        )
        found = sorted([*found, *kept], key=lambda pair: -abs(pair[2]))[:count]
    squares = (term.directions @ term.text) ** 2 + (term.directions @ term.baseline) ** 2
    allowed = _TOLERANCE * max(float(np.abs(term.factors) @ squares), 0.5)
    if abs(total - moved) > allowed:
        raise BackendError(
            f"what pairs of neurons get misses what the second order moved, {moved:.4g}, by "
            f"{moved - total:.2g}; export the bundle again"
        )
    return [pair for pair in found if pair[2]]


def _shares(term: SecondOrder, start: int, stop: int) -> DoubleArray:
    """Of the pairs of features from `start` to `stop` with those from `start` on, [rows, columns];
    0 where the second comes before the first, which is that pair again.
    """
    weighed = term.factors[:, None] * term.directions[:, start:stop]
    matrix = weighed.T @ term.directions[:, start:]
    products = np.outer(term.text[start:stop], term.text[start:])
    products -= np.outer(term.baseline[start:stop], term.baseline[start:])
    shares: DoubleArray = np.triu(2 * matrix * products)
    rows = np.arange(stop - start)
    shares[rows, rows] /= 2
    return shares


def _largest(shares: DoubleArray, count: int) -> npt.NDArray[np.int64]:
    """The flat places of so many shares of the largest magnitude, in no order."""
    sizes = np.abs(shares).ravel()
    if count >= sizes.size:
        return np.arange(sizes.size)
    return np.argpartition(-sizes, count)[:count]
