"""A piece that is more than a stream holds is read in parts, each with a verdict.

What slides out of a stream was judged before, then. Otherwise harm in the front of a long piece
would be gone by the time of its one verdict.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from siren_runtime.backends.verdicts import HeadScore, categories_of

from .result import StreamResult

_Piece = TypeVar("_Piece", str, list[int])


def halved(piece: _Piece, most: int, tokens: Callable[[_Piece], int]) -> list[_Piece]:
    """Halve a piece, and its halves, until none has more than `most` tokens."""
    if len(piece) < 2 or tokens(piece) <= most:
        return [piece]
    middle = len(piece) // 2
    halves = piece[:middle], piece[middle:]
    return [part for half in halves for part in halved(half, most, tokens)]


def result_of_parts(results: Sequence[StreamResult]) -> StreamResult:
    """What a feed gives back that was read in parts between which text slid out: of each head the
    worst verdict, and the rest of the part whose verdict is the primary head's.
    """
    *_, last = results
    worst = max(results, key=_rank)
    heads = {n: max((result.heads[n] for result in results), key=_rank) for n in last.heads}
    categories, flagged = categories_of(heads.values())
    decisions = dict.fromkeys(decision for result in results for decision in result.decisions)
    return replace(
        worst,
        tokens=last.tokens,
        computed=sum(result.computed for result in results),
        rolled_back=sum(result.rolled_back for result in results),
        slid=last.slid,
        truncated=last.truncated,
        decisions=(*decisions,),
        heads=heads,
        categories=categories,
        flagged=flagged,
    )


def _rank(verdict: StreamResult | HeadScore) -> tuple[int, float]:
    """Harmful is worst, then what has no verdict; among those alike the highest risk."""
    return (False, None, True).index(verdict.is_harmful), verdict.risk
