"""From which thresholds on an evaluation flags rows, and how its report says so."""

from collections.abc import Mapping
from dataclasses import dataclass

from siren_runtime import Guard


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


def stated_thresholds(guard: Guard, threshold: float | None) -> Stated:
    """The threshold of all texts; where None is stated the guard's own, of responses theirs."""
    if threshold is not None:
        return Stated(threshold)
    head = guard.judge.primary
    of_responses = head.responses.threshold if head.responses else None
    return Stated(head.threshold, of_responses, bool(head.labels))


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
