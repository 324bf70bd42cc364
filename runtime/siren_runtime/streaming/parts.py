"""A piece that is more than a stream holds is read in parts, each with a verdict.

What slides out of a stream was judged before, then. Otherwise harm in the front of a long piece
would be gone by the time of its one verdict.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from .result import StreamResult

_Piece = TypeVar("_Piece", str, list[int])


def in_parts(piece: _Piece, most: int, tokens: Callable[[_Piece], int]) -> list[_Piece]:
    """Halve a piece, and its halves, until none has more than `most` tokens."""
    if len(piece) < 2 or tokens(piece) <= most:
        return [piece]
    middle = len(piece) // 2
    halves = piece[:middle], piece[middle:]
    return [part for half in halves for part in in_parts(half, most, tokens)]


def result_of_parts(results: Sequence[StreamResult], *, worst: bool) -> StreamResult:
    """What a feed gives back that was read in parts.

    Args:
        worst: whether the verdict is the worst of the parts', else it is the last one's.
    """
    *_, last = results
    verdict = max(results, key=_rank) if worst else last
    decisions = dict.fromkeys(decision for result in results for decision in result.decisions)
    return replace(
        verdict,
        tokens=last.tokens,
        computed=sum(result.computed for result in results),
        rolled_back=sum(result.rolled_back for result in results),
        slid=last.slid,
        decisions=(*decisions,),
    )


def _rank(result: StreamResult) -> tuple[int, float]:
    """Harmful is worst, then what has no verdict; among those alike the highest risk."""
    return (False, None, True).index(result.is_harmful), result.risk
