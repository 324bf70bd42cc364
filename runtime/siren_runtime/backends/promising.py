"""Which spans of an encoder's window are worth being read by themselves."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from siren_runtime.backends.outputs import DoubleArray
from siren_runtime.text.spans import Cut

# How many times the window's tokens are read again in spans, and how much of two may be the same:
# docs/benchmarks.md has what was measured.
_SHARE: Final = 2
_OVERLAP: Final = 1 / 2


def promising(cuts: Sequence[Cut], scores: DoubleArray, tokens: int) -> list[Cut]:
    """The spans that score the highest amid their window, in the order of `cuts`.

    Of each size and by each score these are the highest one, and then the highest until twice as
    many tokens are read again as the window has. Of two that have more than half of their tokens in
    common one is read.

    Args:
        scores: of the mean over each span's tokens, by all that is held against thresholds, float64
            [spans, scores].
        tokens: of the window.
    """
    chosen: set[int] = set()
    for column in scores.T:
        order = np.argsort(-column, kind="stable").tolist()
        for size in {cut.size for cut in cuts}:
            of_size = [number for number in order if cuts[number].size == size]
            chosen.update(_of_size(cuts, of_size, tokens * _SHARE))
    return [cuts[number] for number in sorted(chosen)]


def _of_size(cuts: Sequence[Cut], order: Sequence[int], room: int) -> list[int]:
    """Numbers of spans, the most promising first in `order`, of as many tokens as there is room."""
    chosen = [*order[:1]]
    room -= cuts[order[0]].length
    for number in order[1:]:
        cut = cuts[number]
        if cut.length <= room and all(_common(cut, cuts[n]) <= _OVERLAP for n in chosen):
            chosen.append(number)
            room -= cut.length
    return chosen


def _common(one: Cut, other: Cut) -> float:
    """The share of the tokens of two spans that both have."""
    both = min(one.stop, other.stop) - max(one.start, other.start)
    return max(both, 0) / (max(one.stop, other.stop) - min(one.start, other.start))
