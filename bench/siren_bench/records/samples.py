"""Summaries of repeated measurements."""

from collections.abc import Sequence
from statistics import median, quantiles


def p95(samples: Sequence[float]) -> float:
    """Return the 95th percentile, between the samples that lie around it."""
    if len(samples) == 1:
        return samples[0]
    return quantiles(samples, n=20, method="inclusive")[-1]


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median over rounds of theirs divided by ours of the same round."""
    return median(a / b for a, b in zip(theirs, ours, strict=True))
