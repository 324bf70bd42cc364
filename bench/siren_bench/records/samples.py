"""Repeated measurements: how they take turns, and their summaries."""

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median, quantiles
from typing import TypeVar

from siren_export.tune.timing import settle

_T = TypeVar("_T")


def in_turns(runs: Sequence[_T], rounds: int, warm_ups: int = 1) -> Iterator[tuple[int, list[_T]]]:
    """Yield the number of each round, from 0, and what is run in it, in an order that turns round.

    So what disturbs the machine for a while, and what one run leaves behind for the next, falls on
    all of them alike. Rounds to warm up come before, of numbers below 0.
    """
    for number in range(-warm_ups, rounds):
        yield number, [*runs] if number % 2 == 0 else [*reversed(runs)]


def timed_in_turns(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    done: Callable[[int], object] = lambda rounds: None,
    *,
    warm_ups: int = 1,
) -> list[list[float]]:
    """Run each once a round, `in_turns`, after the rounds to warm up.

    Args:
        done: Called with the number of rounds, after each.

    Returns:
        The milliseconds of each run in every round.
    """
    samples: list[list[float]] = [[] for _ in runs]
    for number, turn in in_turns([*zip(runs, samples, strict=True)], rounds, warm_ups):
        for run, own in turn:
            start = time.perf_counter()
            run()
            if number >= 0:
                own.append((time.perf_counter() - start) * 1e3)
        if number >= 0:
            done(number + 1)
    return samples


def engines_in_turns(
    runs: Sequence[Callable[[int], float]],
    rounds: int,
    warm_ups: int = 1,
    *,
    go_on: Callable[[int], bool] = lambda number: True,
    done: Callable[[int], object] = lambda runs: None,
) -> tuple[list[list[float]], dict[int, str]]:
    """Run engines, each once a round, `in_turns`, when the threads of the one before are asleep.

    One that fails is not run again; the others go on.

    Args:
        runs: Each is given the number of the round, and returns the seconds that count.
        go_on: Is given the number of each round before it, and says whether it is run; if it is
            not, nor are those after it.
        done: Called with the number of runs that count, failed ones too, after each.

    Returns:
        The seconds of each run in every round; and why, by their positions, for those that failed.

    Raises:
        Exception: the first fails, which the others are compared with.
    """
    samples: list[list[float]] = [[] for _ in runs]
    failed: dict[int, str] = {}
    for number, turn in in_turns(range(len(runs)), rounds, warm_ups):
        if not go_on(number):
            break
        for place, i in enumerate(turn, start=1):
            if i not in failed:
                settle()
                try:
                    seconds = runs[i](number)
                except Exception as error:  # whatever a peer's libraries raise
                    if i == 0:
                        raise
                    failed[i] = reason(error)
                else:
                    samples[i] += [seconds] if number >= 0 else []
            if number >= 0:
                done(number * len(runs) + place)
    return samples, failed


def p95(samples: Sequence[float]) -> float:
    """Return the 95th percentile, between the samples that lie around it."""
    if len(samples) == 1:
        return samples[0]
    return quantiles(samples, n=20, method="inclusive")[-1]


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median over rounds of theirs divided by ours of the same round."""
    return median(a / b for a, b in zip(theirs, ours, strict=True))


def spread(ratios: Sequence[float], digits: int = 2) -> str:
    """Write the median of ratios and, in brackets, their 10th to 90th percentile."""
    tenths = quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else [*ratios]
    middle, low, high = (f"{n:.{digits}f}" for n in (median(ratios), tenths[0], tenths[-1]))
    return f"{middle}x ({low} to {high})"


def reason(error: Exception) -> str:
    """Say in one line why an engine could not go on."""
    return " ".join(f"{type(error).__name__}: {error}".split())
