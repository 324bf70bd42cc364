"""A piece that is more than a stream holds is read in parts, each with a verdict.

What slides out of a stream was judged before, then. Otherwise harm in the front of a long piece
would be gone by the time of its one verdict. A piece may turn out to fit after all, since parts of
a text may have more tokens apart than together.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from siren_runtime.backends.verdicts import HeadScore, verdict_of

from .result import StreamResult

_Piece = TypeVar("_Piece", str, list[int])


def halved(piece: _Piece, most: int, tokens: Callable[[_Piece], int]) -> list[_Piece]:
    """Halve a piece, and its halves, until none has more than `most` tokens."""
    if len(piece) < 2 or tokens(piece) <= most:
        return [piece]
    middle = len(piece) // 2
    halves = piece[:middle], piece[middle:]
    return [part for half in halves for part in halved(half, most, tokens)]


def result_of_parts(results: Sequence[StreamResult], *, slid: bool) -> StreamResult:
    """What a feed gives back that was read in parts: the decisions made in any of them, and the
    verdict on the last, which is of all the text.

    Args:
        slid: whether text slid out between them. Of each head the worst verdict counts then, and
            the rest is that of the part whose verdict is the primary head's.
    """
    *_, last = results
    decisions = dict.fromkeys(decision for result in results for decision in result.decisions)
    return replace(
        _worst(results) if slid else last,
        tokens=last.tokens,
        computed=sum(result.computed for result in results),
        rolled_back=sum(result.rolled_back for result in results),
        slid=last.slid,
        truncated=last.truncated,
        decisions=(*decisions,),
    )


def _worst(results: Sequence[StreamResult]) -> StreamResult:
    names = results[-1].heads
    heads = {name: max((result.heads[name] for result in results), key=_rank) for name in names}
    return replace(max(results, key=_rank), **verdict_of(heads))


def _rank(verdict: StreamResult | HeadScore) -> tuple[int, float]:
    """Harmful is worst, then what has no verdict; among those alike the highest risk."""
    return (False, None, True).index(verdict.is_harmful), verdict.risk
