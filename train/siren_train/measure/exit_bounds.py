"""Bounds of exits: from which of its scores an exit may decide, for a loss of macro-F1 at most.

An exit calls a text safe up to `low` and harmful from `high` on. Bounds are opened, and then moved
past lost rows, as few at a time as let the exit decide on more rows: the move that saves the most
blocks for the macro-F1 that it costs, until none is left that the loss allows. A row is lost that
the whole guard judges rightly and the exit wrongly; one that it is the other way with earns
nothing, since that is luck. This is done for each choice among the exits, and the cheapest outcome
taken.

A bound stands right before the next row that it would lose, so on rows of the same kind it is to be
expected to lose one more than here, which is counted. Such a number of rows varies by its square
root; so much is added, and the loss holds on other rows in some four of five cases. Macro-F1 is the
mean over data sets, and must hold at the threshold and at that of each tier.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siren_runtime.errors import InputError

SAFE, HARMFUL = 0, 1  # the sides of an exit: a text is called safe, or harmful
MOST_EXITS = 7  # every choice among them is tried
_Moves = dict[tuple[int, int], int]  # exit and side -> rows that are lost there; -1: it is closed


@dataclass(frozen=True, eq=False)
class ExitScores:
    """Rows, scored by a whole guard and by each of its exits.

    Attributes:
        whole: float64 [rows].
        exits: float64 [rows, exits], by rising depth.
        harmful: bool [rows], by the labels.
        datasets: str [rows], names.
        tokens: int64 [rows], that were read.
    """

    whole: NDArray[np.float64]
    exits: NDArray[np.float64]
    harmful: NDArray[np.bool_]
    datasets: NDArray[np.str_]
    tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Bounds:
    """What was chosen: of each exit `low` and `high`, and the share of blocks that rows then need.

    `lost` is how much macro-F1 may be lost, by the count above, at the threshold where most is.
    """

    bounds: list[tuple[float | None, float | None]]
    cost: float
    lost: float


def choose_bounds(
    scores: ExitScores, depths: Sequence[int], blocks: int, cutoffs: Sequence[float], loss: float
) -> Bounds:
    """Choose bounds for the least mean cost.

    Args:
        depths: of the exits, in blocks, rising; `MOST_EXITS` at most.
        blocks: that the whole guard runs.
        cutoffs: the thresholds, ascending, on whose sides an exit leaves a text: below all or none.
        loss: of macro-F1, 0 to 1.

    Raises:
        InputError: the whole guard judges no row of a class rightly, so nothing can be lost.
    """
    search = _Search(scores, depths, blocks, cutoffs)
    exits = range(len(depths))
    subsets = [chosen for n in exits for chosen in combinations(exits, n + 1)]
    found = [_greedy(search, chosen, loss) for chosen in subsets]
    best = min(found, key=lambda one: one.cost)
    return Bounds(search.bounds(best.moves), best.cost, best.lost)


@dataclass(frozen=True, eq=False)
class _Measured:
    """What moves come to.

    Attributes:
        number: int64 [rows], the exit that decides on each, as `decisions` has it.
        cost: the share of blocks that the rows' tokens need.
        lost: of macro-F1, at the threshold where most may be lost.
    """

    moves: _Moves
    number: NDArray[np.int64]
    cost: float
    lost: float


def _greedy(search: "_Search", exits: Sequence[int], loss: float) -> _Measured:
    """Open and move bounds of these exits while the loss allows."""
    now = search.measure(dict.fromkeys(search.sides, -1))
    while True:
        best, best_gain = None, 0.0
        for side in product(exits, (SAFE, HARMFUL)):
            moves = search.next_move(now, side)
            if moves is None:
                continue
            then = search.measure(moves)
            gain = (now.cost - then.cost) / max(then.lost - now.lost, 1e-9)
            if then.lost <= loss and gain > best_gain:
                best, best_gain = then, gain
        if best is None:
            return now
        now = best


def decisions(
    scores: NDArray[np.float64], bounds: Sequence[tuple[float | None, float | None]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which exit decides on each row, and how.

    Args:
        scores: float64 [rows, exits].

    Returns:
        int64 [rows], the exit's number, or how many there are where none decides; and `SAFE`,
        `HARMFUL` or -1.
    """
    number = np.full(len(scores), len(bounds), np.int64)
    side = np.full(len(scores), -1, np.int64)
    for exit_, (low, high) in reversed([*enumerate(bounds)]):
        for value, decides in (
            (SAFE, None if low is None else scores[:, exit_] <= low),
            (HARMFUL, None if high is None else scores[:, exit_] >= high),
        ):
            if decides is not None:
                number[decides], side[decides] = exit_, value
    return number, side


class _Search:
    """Bounds by how many rows may be lost, and what they cost and lose."""

    def __init__(
        self, scores: ExitScores, depths: Sequence[int], blocks: int, cutoffs: Sequence[float]
    ) -> None:
        self._scores = scores
        self._depths = np.array([*depths, blocks]) / blocks
        self._right = np.array(
            [(scores.whole >= cutoff) == scores.harmful for cutoff in cutoffs]
        )  # [cutoffs, rows]
        if not all(self._right[:, rows].any() for rows in (scores.harmful, ~scores.harmful)):
            raise InputError("the whole guard judges no row of a class rightly; exits save nothing")
        may_be_lost = {
            SAFE: scores.harmful & self._right.any(axis=0),
            HARMFUL: ~scores.harmful & self._right.any(axis=0),
        }
        self.sides = [*product(range(len(depths)), (SAFE, HARMFUL))]
        self._losses = {
            (number, side): _in_order(scores.exits[:, number], may_be_lost[side], side)
            for number, side in self.sides
        }
        self._steps = {
            (number, side): _steps(scores.exits[:, number], self._losses[number, side], side)
            for number, side in self.sides
        }
        self._of_dataset = [scores.datasets == name for name in np.unique(scores.datasets)]
        self._before = self._macro_f1(self._right)

    def bounds(self, moves: _Moves) -> list[tuple[float | None, float | None]]:
        """Of each exit `low` and `high`; the second lies above the first."""
        found = []
        for number in range(len(self._depths) - 1):
            low, high = (self._bound((number, side), moves) for side in (SAFE, HARMFUL))
            if low is not None and high is not None and high <= low:
                above = self._scores.exits[:, number]
                above = above[above > low]
                high = float(above.min()) if above.size else None
            found.append((low, high))
        return found

    def next_move(self, now: _Measured, side: tuple[int, int]) -> _Moves | None:
        """The moves with the next one of a side by which its exit decides on more rows; None where
        there is none.

        Lost rows of one score, those at the very end of the scores, and those between which other
        exits decide on every row, are passed together.
        """
        exit_, way = side
        nearest = _signed(self._scores.exits[now.number > exit_, exit_], way).min(initial=np.inf)
        for rows in range(now.moves[side] + 1, len(self._steps[side])):
            bound = self._steps[side][rows]
            if bound is not None and _signed(bound, way) >= nearest:
                return {**now.moves, side: rows}
        return None

    def measure(self, moves: _Moves) -> _Measured:
        """What moves cost, and the macro-F1 that may be lost."""
        number, side = decisions(self._scores.exits, self.bounds(moves))
        tokens = self._scores.tokens
        cost = float((tokens * self._depths[number]).sum() / tokens.sum())
        wrong = (side >= 0) & ((side == HARMFUL) != self._scores.harmful)
        for place, rows in moves.items():
            if self._bound(place, moves) is not None:
                wrong[self._losses[place][rows : rows + 1]] = True
        after = self._macro_f1(self._right & ~wrong)
        lost = int((wrong & self._right.any(axis=0)).sum())
        margin = 1 + 1 / math.sqrt(lost) if lost else 1.0
        return _Measured(moves, number, cost, float((self._before - after).max()) * margin)

    def _bound(self, place: tuple[int, int], moves: _Moves) -> float | None:
        return None if moves[place] < 0 else self._steps[place][moves[place]]

    def _macro_f1(self, right: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The mean over data sets at each cutoff, of which verdicts are right, [cutoffs, rows]."""
        mean: NDArray[np.float64] = np.mean(
            [_macro_f1(self._scores.harmful[rows], right[:, rows]) for rows in self._of_dataset],
            axis=0,
        )
        return mean


def _in_order(
    scores: NDArray[np.float64], may_be_lost: NDArray[np.bool_], side: int
) -> NDArray[np.int64]:
    """Those rows in the order in which a bound that moves from its side loses them."""
    rows = np.flatnonzero(may_be_lost)
    ordered: NDArray[np.int64] = rows[np.argsort(_signed(scores[rows], side), kind="stable")]
    return ordered


def _steps(scores: NDArray[np.float64], losses: NDArray[np.int64], side: int) -> list[float | None]:
    """The bound at which n of those rows are lost, for n from 0 on; None decides on no row."""
    ordered = np.unique(_signed(scores, side))
    steps: list[float | None] = []
    for next_lost in [*_signed(scores[losses], side).tolist(), np.inf]:
        before = int(np.searchsorted(ordered, next_lost))
        steps.append(None if before == 0 else float(_signed(ordered[before - 1], side)))
    return steps


def _signed(scores: Any, side: int) -> Any:
    """Scores as a bound meets them that moves from its side."""
    return scores if side == SAFE else -scores


def _macro_f1(harmful: NDArray[np.bool_], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What a data set counts, as `dataset_macro_f1` has it, for each row of `right`."""
    if harmful.all() or not harmful.any():
        return np.asarray(right.mean(axis=1), np.float64)
    wrong = (~right).sum(axis=1)
    hits = [2 * (right & rows).sum(axis=1) for rows in (harmful, ~harmful)]
    f1 = [of_class / (of_class + wrong) for of_class in hits]
    return np.asarray(np.mean(f1, axis=0), np.float64)
