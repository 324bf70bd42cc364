"""Which spans of an encoder's window are worth being read by themselves."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from siren_runtime.backends.outputs import DoubleArray
from siren_runtime.text.spans import Cut

# Of the window's tokens, how many are read again in spans, for each head; and how much of two spans
# may be the same. Measured: docs/benchmarks.md, "Which spans of an encoder are read".
_SHARE: Final = 1 / 2
_OVERLAP: Final = 1 / 2


def promising(cuts: Sequence[Cut], scores: DoubleArray, tokens: int) -> list[Cut]:
    """The spans that heads score the highest amid their window, in the order of `cuts`.

    For each head these are the highest of each size, and then the highest of all sizes, until half
    as many tokens are read again as the window has. Of two that have more than half of their tokens
    in common one is read.

    Args:
        scores: by each head, of the mean over each span's tokens, float64 [spans, heads].
        tokens: of the window.
    """
    chosen: set[int] = set()
    for column in scores.T:
        chosen.update(_of_head(cuts, np.argsort(-column, kind="stable").tolist(), tokens * _SHARE))
    return [cuts[number] for number in sorted(chosen)]


def _of_head(cuts: Sequence[Cut], order: Sequence[int], room: float) -> list[int]:
    """Numbers of spans, the most promising first in `order`, of as many tokens as there is room."""
    chosen = [*{cuts[number].size: number for number in reversed(order)}.values()]
    room -= sum(cuts[number].length for number in chosen)
    for number in order:
        cut = cuts[number]
        if cut.length <= room and all(_common(cut, cuts[n]) <= _OVERLAP for n in chosen):
            chosen.append(number)
            room -= cut.length
    return chosen


def _common(one: Cut, other: Cut) -> float:
    """The share of the tokens of two spans that both have."""
    both = min(one.stop, other.stop) - max(one.start, other.start)
    return max(both, 0) / (max(one.stop, other.stop) - min(one.start, other.start))
