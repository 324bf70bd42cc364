"""Thresholds and smoothing of streams: most harmful ones stopped in time, few safe ones stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from siren_runtime.bundle.heads import Decision, HeadSpec
from siren_runtime.bundle.thresholds import SpanThreshold
from siren_runtime.scoring.verdict import HeadJudge

from .decisions import with_spans, with_thresholds
from .evaluate import Scores
from .threshold_rules import false_positive_threshold
from .traces import Trace

SMOOTHING = (1, 4, 8, 16, 32, 64)  # tokens, of which one is chosen


@dataclass(frozen=True)
class Alarms:
    """What a threshold does on some streams.

    Attributes:
        smoothing: tokens of the moving average of scores.
        coverage: share of the harmful streams whose alarm comes by the end of their harm.
        false_alarms: share of the safe streams that raise one anywhere.
    """

    threshold: float
    smoothing: int
    coverage: float
    false_alarms: float


def alarm_threshold(traces: Sequence[Trace], rate: float) -> float:
    """Return the threshold of most alarms at which at most `rate` of the safe streams raise one.

    Raises:
        InputError: safe streams that must raise none score 1.
    """
    scores = Scores(
        np.array([trace.peak for trace in traces]),
        np.array([trace.row.span is not None for trace in traces]),
        np.array([trace.row.dataset for trace in traces]),
        np.array([""] * len(traces)),
    )
    return false_positive_threshold(scores, rate)


def find_alarms(traces: Sequence[Trace], rate: float, smoothing: int = 1) -> Alarms:
    """Choose the threshold of traces whose scores are smoothed so, and say what it does on them.

    Raises:
        InputError: as `alarm_threshold`.
    """
    threshold = alarm_threshold(traces, rate)
    timely = [_in_time(trace, threshold) for trace in traces if trace.row.span is not None]
    false = [trace.peak >= threshold for trace in traces if trace.row.span is None]
    return Alarms(threshold, smoothing, float(np.mean(timely)), float(np.mean(false)))


def alarming(spec: HeadSpec, old: Decision, smoothing: int, threshold: float) -> Decision:
    """How a head decides whose streams raise the alarm from the risk `threshold` on.

    Their spans keep the risks that they have, so thresholds of spans move with that of texts.

    Args:
        old: by which the streams were traced, as texts with a response.
    """
    head = HeadJudge.of(spec, old).of_text(has_response=True)
    spans = [
        SpanThreshold(size, head.harmful_from(own, threshold)) for size, own in head.spans.items()
    ]
    smoothed_so = msgspec.structs.replace(old, smoothing=smoothing)
    return with_spans(with_thresholds(smoothed_so, threshold, None, None), spans, None)


def choose_smoothing(traces: Sequence[Trace], rate: float) -> int:
    """Return the smoothing of the best coverage, the least of equally good ones.

    The tokens of a piece count as if all had the score of the last.

    Args:
        traces: not smoothed, and without spans, which are not averaged.
    """
    found = [
        find_alarms([smoothed(trace, tokens) for trace in traces], rate, tokens)
        for tokens in SMOOTHING
    ]
    return max(found, key=lambda one: (one.coverage, -one.smoothing)).smoothing


def smoothed(trace: Trace, smoothing: int) -> Trace:
    """Return a trace whose scores are moving averages over so many tokens."""
    kept = 1 - 2 / (smoothing + 1)
    new = np.diff(trace.tokens, prepend=trace.tokens_before)
    averages = np.empty_like(trace.scores)
    average = trace.scores[0]
    for place, (score, tokens) in enumerate(zip(trace.scores, new.tolist(), strict=True)):
        average = averages[place] = score + (average - score) * kept**tokens
    return replace(trace, scores=averages)


def _in_time(trace: Trace, threshold: float) -> bool:
    assert trace.row.span is not None
    alarm = trace.alarm(threshold)
    return alarm is not None and bool(trace.characters[alarm] <= trace.row.span[1])
