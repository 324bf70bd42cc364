"""How an evaluation reads texts and from which thresholds on it flags them, as its report says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard
from siren_runtime.text.reading import LongText


@dataclass(frozen=True)
class Stated:
    """Thresholds, as reports have them.

    Attributes:
        threshold: a row is flagged from this score on; of a head of labels, from this risk on.
        response_threshold: of rows with a response; None where it is not another.
        each_label: whether these are labels that hold from thresholds of their own on, all of which
            stand at `threshold` in risks.
    """

    threshold: float
    response_threshold: float | None = None
    each_label: bool = False

    def of_rows(self, has_response: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The threshold of each row, float64 [rows], by whether it has a response, bool [rows]."""
        of_others = self.threshold
        of_responses = of_others if self.response_threshold is None else self.response_threshold
        return np.where(has_response, of_responses, of_others)


def stated_thresholds(guard: Guard, threshold: float | None, head: str | None = None) -> Stated:
    """The threshold of all texts; where None is stated a head's own, of responses theirs.

    Args:
        head: its name; None is the primary one.
    """
    if threshold is not None:
        return Stated(threshold)
    own = guard.judge.heads[head or guard.heads[0]]
    of_responses = own.responses.threshold if own.responses else None
    return Stated(own.threshold, of_responses, bool(own.labels))


def label_thresholds(guard: Guard, threshold: float | None) -> dict[str, Mapping[str, float]]:
    """From which probability on each label of each head that has some holds, by names.

    Args:
        threshold: of the primary head, with which its labels move; None is the guard's own.
    """
    heads = dict(guard.judge.heads)
    heads[guard.heads[0]] = guard.judge.primary.overridden(threshold, None, None, None)
    return {name: head.labels for name, head in heads.items() if head.labels}


def told(threshold: float, of_responses: float | None = None, *, each_label: bool = False) -> str:
    """The words of a report for what `Stated` has."""
    if each_label:
        return "threshold each label's"
    behind = "" if of_responses is None else f", with a response {of_responses:g}"
    return f"threshold {threshold:g}{behind}"


@dataclass(frozen=True)
class StatedReading:
    """What of a text was read, as reports have it.

    Attributes:
        long_text: of one that does not fit, as `Limits` has it; None of trajectories.
        spans: sizes in tokens of the spans by which the head decides too, ascending.
    """

    long_text: LongText | None
    spans: list[int]


def stated_reading(guard: Guard, head: str | None = None) -> StatedReading:
    """How a guard reads for a head where a call says nothing.

    Args:
        head: its name; None is the primary one.
    """
    judge, primary = guard.judge, guard.heads[0]
    name = head or primary
    asked = judge.limits.spans_asked and name == primary
    counts = asked or judge.counts_spans(judge.heads[name])
    long_text = None if guard.manifests[0].is_trajectory else judge.limits.long_text
    return StatedReading(long_text, list(judge.limits.spans or ()) if counts else [])


_LONG_TEXTS = {
    "truncate": "long texts read by their beginning",
    "windows": "long texts read in windows",
    "refuse": "long texts refused",
}


def read_told(long_text: LongText | None, spans: Sequence[int]) -> str:
    """The words of a report for what `StatedReading` has, behind others; none where it has None."""
    if long_text is None:
        return ""
    sizes = ", ".join(map(str, spans))
    counted = f"with spans of {sizes} tokens" if sizes else "without spans"
    return f", {_LONG_TEXTS[long_text]}, {counted}"
