"""Rounding a matrix so that its products stay what they were (GPTQ, arXiv 2210.17323).

To nearest, every weight is off by itself. With the second moments H of the layer's inputs, what an
input's rounded weights are off by is made up for by the weights of the inputs after it, within
groups of neighbouring inputs:

    U^T U = (H + 0.01 mean(diag H) I)^-1            U upper triangular
    e_i = (w_i - round(w_i)) / U_ii,   w_j -= U_ij e_i    for the inputs j > i of the group
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

_DAMPING = 0.01

# A block [groups, inputs, out] and its inputs' weights 1 / U_ii^2 -> its scale [groups, out].
Scale = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Weights of an input and their scale [groups, out], and of the inputs 2i + 1 the integers of the
# input before -> integers.
Round = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]


@dataclass
class Rounded:
    """A matrix as integers and their scales, which `make` gives together; each is written apart."""

    make: Callable[[], tuple[np.ndarray, np.ndarray]]
    _scales: np.ndarray | None = None  # left by writing the integers, so as not to round twice

    def integers(self) -> Iterator[np.ndarray]:
        integers, self._scales = self.make()
        yield integers

    def scales(self) -> Iterator[np.ndarray]:
        if self._scales is None:
            _, self._scales = self.make()
        yield self._scales


def round_by_moments(
    matrix: np.ndarray, moments: np.ndarray, block: int, scale: Scale, round: Round
) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix input by input.

    Args:
        matrix: float32 [in, out].
        moments: of the inputs, float32 [in / group, group, group].
        block: inputs that share a scale, an even number of them that divides the group.

    Returns:
        The integers, int8 [in, out], and the scales, float32 [in / block, out].
    """
    rows, columns = matrix.shape
    groups, size, _ = moments.shape
    factor = _factor(moments)
    left = matrix.reshape(groups, size, columns).astype(np.float32)  # a copy, used up below
    integers = np.empty(left.shape, np.int8)
    scales = np.empty((groups, size // block, columns), np.float32)
    for number, start in enumerate(range(0, size, block)):
        stop = start + block
        values, u = left[:, start:stop], factor[:, start:stop]
        diagonal = np.einsum("gii->gi", u[:, :, start:stop])[:, :, None]
        steps = scales[:, number] = scale(values, diagonal**-2)
        errors = np.empty_like(values)
        for i in range(block):
            before = integers[:, start + i - 1] if i % 2 else None
            rounded = integers[:, start + i] = round(values[:, i], steps, before)
            errors[:, i] = (values[:, i] - rounded * steps) / diagonal[:, i]
            after = u[:, i, start + i + 1 : stop, None]
            values[:, i + 1 :] -= after * errors[:, i, None]
        left[:, stop:] -= u[:, :, stop:].transpose(0, 2, 1) @ errors
    return integers.reshape(rows, columns), scales.reshape(-1, columns)


def _factor(moments: np.ndarray) -> np.ndarray:
    """U of every group, float32 [in / group, group, group]."""
    exact = moments.astype(np.float64)
    mean = np.einsum("gii->gi", exact).mean(axis=1)
    damping = np.where(mean > 0, _DAMPING * mean, 1.0)  # inputs that were all zero
    inverse = np.linalg.inv(exact + damping[:, None, None] * np.eye(exact.shape[1]))
    upper: np.ndarray = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    return upper.astype(np.float32)
