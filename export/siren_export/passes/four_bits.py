"""Rounding a matrix to 4 or 8 bits, with a scale for each block of inputs of an output channel.

To nearest, every weight is off by itself. With the second moments H of the layer's inputs, what an
input's rounded weights are off by is made up for by the weights of the inputs after it (GPTQ, arXiv
2210.17323), within groups of neighbouring inputs:

    U^T U = (H + 0.01 mean(diag H) I)^-1            U upper triangular
    e_i = (w_i - round(w_i)) / U_ii,   w_j -= U_ij e_i    for the inputs j > i of the group

Of the scales that are tried for a block, the one of least error is taken, its inputs weighted by
1 / U_ii^2.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_DAMPING = 0.01
# Of the scale at which no weight is clipped, those that are tried.
_SHARES = (1.1, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Grid:
    """Values of 4 bits, -8 to 7, or of 8, -128 to 127, times the scale of a block of inputs.

    Attributes:
        block: inputs that share a scale.
        signed: whether a scale may be negative, so that the weight of largest magnitude is at -8;
            else it is at 7 or -7.
        stored: dtype of the scales, to which they are rounded before they are used.
        bits: 4 or 8.
    """

    block: int
    signed: bool
    stored: npt.DTypeLike
    bits: int = 4

    @property
    def lowest(self) -> int:
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        return -1 - self.lowest

    def round(self, values: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The nearest integers, as floats."""
        rounded: np.ndarray = np.clip(np.rint(values / scale), self.lowest, self.highest)
        return rounded


def round_matrix(
    matrix: np.ndarray, grid: Grid, moments: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix, whose inputs are whole blocks.

    Args:
        matrix: float32 [in, out].
        moments: of the inputs, float32 [in / group, group, group]; used where groups are whole
            blocks. None rounds to nearest.

    Returns:
        The integers, int8 [in, out], and the scales, float32 [in / block, out].
    """
    rows, columns = matrix.shape
    if moments is None or moments.shape[1] % grid.block:
        moments = np.tile(np.eye(grid.block, dtype=np.float32), (rows // grid.block, 1, 1))
    groups, size, _ = moments.shape
    factor = _factor(moments)
    left = matrix.reshape(groups, size, columns).astype(np.float32)  # a copy, used up below
    integers = np.empty(left.shape, np.int8)
    scales = np.empty((groups, size // grid.block, columns), np.float32)
    for number, start in enumerate(range(0, size, grid.block)):
        stop = start + grid.block
        block, u = left[:, start:stop], factor[:, start:stop]
        diagonal = np.einsum("gii->gi", u[:, :, start:stop])[:, :, None]
        scale = _scales(block, diagonal**-2, grid)
        errors = np.empty_like(block)
        for i in range(grid.block):
            rounded = grid.round(block[:, i], scale)
            integers[:, start + i] = rounded
            errors[:, i] = (block[:, i] - rounded * scale) / diagonal[:, i]
            after = u[:, i, start + i + 1 : stop, None]
            block[:, i + 1 :] -= after * errors[:, i, None]
        left[:, stop:] -= u[:, :, stop:].transpose(0, 2, 1) @ errors
        scales[:, number] = scale
    return integers.reshape(rows, columns), scales.reshape(-1, columns)


def _factor(moments: np.ndarray) -> np.ndarray:
    """U of every group, float32 [in / group, group, group]."""
    exact = moments.astype(np.float64)
    mean = np.einsum("gii->gi", exact).mean(axis=1)
    damping = np.where(mean > 0, _DAMPING * mean, 1.0)  # inputs that were all zero
    inverse = np.linalg.inv(exact + damping[:, None, None] * np.eye(exact.shape[1]))
    upper: np.ndarray = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    return upper.astype(np.float32)


def _scales(block: np.ndarray, weights: np.ndarray, grid: Grid) -> np.ndarray:
    """The scale [groups, out] of least weighted error for a block [groups, inputs, out]."""
    magnitude = np.abs(block)
    if grid.signed:
        where = magnitude.argmax(axis=1)[:, None]
        whole = np.take_along_axis(block, where, axis=1)[:, 0] / grid.lowest
    else:
        whole = magnitude.max(axis=1) / grid.highest
    smallest = np.finfo(grid.stored).tiny
    best, least = whole, np.full(whole.shape, np.inf, np.float32)
    for share in _SHARES:
        scale = (whole * np.float32(share)).astype(grid.stored).astype(np.float32)
        scale[np.abs(scale) < smallest] = smallest
        rounded = grid.round(block, scale[:, None]) * scale[:, None]
        error = (weights * np.square(rounded - block)).sum(axis=1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best
