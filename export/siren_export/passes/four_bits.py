"""Rounding a matrix to 4 or 8 bits, with a scale for each block of inputs of an output channel.

Of the scales that are tried for a block, the one of least error is taken, its inputs weighted as
`rounding` weights them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .rounding import round_by_moments

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
    rows = len(matrix)
    if moments is None or moments.shape[1] % grid.block:
        moments = np.tile(np.eye(grid.block, dtype=np.float32), (rows // grid.block, 1, 1))
    return round_by_moments(
        matrix,
        moments,
        grid.block,
        lambda block, weights: _scales(block, weights, grid),
        lambda values, scale, _: grid.round(values, scale),
    )


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
