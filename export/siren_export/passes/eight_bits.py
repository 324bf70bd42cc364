"""Rounding a matrix to 8 bits with one scale for each output channel, safe from saturation.

CPUs with AVX2 or AVX-512 but no VNNI add the products of two neighbouring inputs in 16 bits:
255 (w_0 + w_1) must stay within 32767. The inputs 2i and 2i + 1 are a pair, whose weights of one
sign add up to 128 at most; the scale leaves them 127.
"""

import numpy as np

from .rounding import Round, round_by_moments

_LEVELS, _PAIR = 127, 128
_BLOCK = 32  # of inputs that are made up for at once


def round_channels(
    matrix: np.ndarray, moments: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix.

    Args:
        matrix: float32 [in, out].
        moments: of the inputs, float32 [in / group, group, group]; used where groups are whole
            blocks of 32. None rounds to nearest.

    Returns:
        The integers, int8 [in, out], and the scales, float32 [out].
    """
    largest = np.maximum(_largest_pair(matrix), _largest_pair(-matrix))
    scales = largest / np.float32(_LEVELS)
    scales = np.where(scales > 0, scales, np.float32(1))  # 0 too where that underflows
    return round_at(matrix, scales, moments, _round), scales


def round_at(
    matrix: np.ndarray, scales: np.ndarray, moments: np.ndarray | None, round: Round
) -> np.ndarray:
    """Round a matrix at given scales, float32 [out], to int8 [in, out].

    Args:
        matrix, moments: as `round_channels` takes them.
        round: makes integers, where moments are used.
    """
    if moments is None or moments.shape[1] % _BLOCK:
        nearest: np.ndarray = np.rint(matrix / scales).astype(np.int8)
        return nearest
    same = np.broadcast_to(scales, (len(moments), len(scales)))
    integers, _ = round_by_moments(matrix, moments, _BLOCK, lambda *_: same, round)
    return integers


def _round(values: np.ndarray, scale: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """The nearest integers; of a pair's second input, those that its first leaves."""
    first = np.zeros((), np.int16) if before is None else before.astype(np.int16)
    lowest = np.maximum(-_LEVELS, -_PAIR - np.minimum(first, 0))
    highest = np.minimum(_LEVELS, _PAIR - np.maximum(first, 0))
    rounded: np.ndarray = np.clip(np.rint(values / scale), lowest, highest)
    return rounded


def _largest_pair(matrix: np.ndarray) -> np.ndarray:
    """The largest sum of the positive weights of a pair, for each output channel."""
    positive = np.maximum(matrix, 0)
    largest: np.ndarray = np.add.reduceat(positive, range(0, len(matrix), 2), axis=0).max(axis=0)
    return largest
