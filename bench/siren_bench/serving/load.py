"""A load, and what came of each of its requests."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

SCORED = 200
NOT_CONNECTED = 0  # nobody listened
LOST = -1  # the request went out, and its connection ended without an answer
TOO_MUCH = (429, 503)
_ROUNDING = 1e-3  # of a score, which another batch brings


@dataclass(frozen=True)
class Load:
    """Who asks for how long.

    Attributes:
        start: seconds of the monotonic clock.
        seconds: that requests are sent for.
        callers: how many ask at once, each again when it is answered (a closed loop); None where
            requests come by themselves.
        rate: requests a second of an open loop, whose gaps are exponential (a Poisson process).
        seed: of the gaps and of the choice of texts.
    """

    start: float
    seconds: float
    callers: int | None = None
    rate: float = 0.0
    seed: int = 0

    @property
    def end(self) -> float:
        """After which nothing is sent."""
        return self.start + self.seconds


@dataclass(frozen=True)
class Answer:
    """What came of one request.

    Attributes:
        text: which one was asked for.
        due: when it was to be sent, in seconds of the monotonic clock; in a closed loop, when it
            was sent. Latencies are taken from here, so that a wait to be sent counts.
        ended: when its answer was there.
        status: of HTTP, which in-process refusals have too; or NOT_CONNECTED or LOST.
        score: None where there is none.
    """

    text: int
    due: float
    ended: float
    status: int
    score: float | None = None


def summary(answers: Sequence[Answer], load: Load) -> dict[str, Any]:
    """Count and time answers.

    Returns:
        `texts_per_s`, scored before the load's end; percentiles of the latency of all that were
        scored, and of those that were refused, in milliseconds; counts by what became of them.
    """
    scored = [answer for answer in answers if answer.status == SCORED]
    refused = [answer for answer in answers if answer.status in TOO_MUCH]
    return {
        "offered_per_s": len(answers) / load.seconds,
        "texts_per_s": sum(answer.ended <= load.end for answer in scored) / load.seconds,
        **percentiles(scored),
        **percentiles(refused, "refused_"),
        "statuses": {str(status): n for status, n in Counter(a.status for a in answers).items()},
    }


def percentiles(answers: Sequence[Answer], prefix: str = "") -> dict[str, float]:
    """The 50th, 95th and 99th percentile of the latency, in milliseconds; empty of no answers."""
    found = sorted(1000 * (answer.ended - answer.due) for answer in answers)
    if not found:
        return {}
    hundredths = quantiles(found, n=100, method="inclusive") if len(found) > 1 else found * 99
    return {f"{prefix}p{p}_ms": hundredths[p - 1] for p in (50, 95, 99)}


def wrong(answers: Sequence[Answer], expected: Sequence[float]) -> int:
    """How many scores are not the guard's own, but for rounding."""
    return sum(
        answer.score is not None and abs(answer.score - expected[answer.text]) > _ROUNDING
        for answer in answers
    )
