"""Rules by which a threshold is chosen on held-out scores."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from siren_runtime.errors import InputError

from .evaluate import Scores
from .metrics import mean_macro_f1, precision_recall


def find_threshold(scores: Scores, rule: str) -> float:
    """Return the threshold that a rule asks for.

    Args:
        rule: "best" (macro-F1), "fpr:RATE", "precision:TARGET", "recall:TARGET" or a number.

    Raises:
        InputError: the rule is none of these, or no threshold meets it.
    """
    kind, target = parse_rule(rule)
    if kind == "best":
        return best_threshold(scores)
    return _RULES[kind](scores, target) if kind else target


def parse_rule(rule: str) -> tuple[str, float]:
    """Return the kind of a rule and its number; of a number the kind is empty.

    Raises:
        InputError: it is no rule, as `find_threshold` takes them.
    """
    if rule == "best":
        return rule, 0.0
    kind, _, value = rule.rpartition(":")
    target = stated_threshold(value)
    if target is None or (kind not in _RULES and rule != value):
        raise InputError(
            f"{rule!r} is no rule for a threshold; expected best, fpr:RATE, precision:TARGET, "
            "recall:TARGET or a number, from 0 to 1"
        )
    return kind, target


def stated_threshold(value: str) -> float | None:
    """Return the number from 0 to 1 that a rule is; None if it is none."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0.0 <= number <= 1.0 else None


def best_threshold(scores: Scores) -> float:
    """Return the threshold of the best macro-F1, averaged over data sets as `mean_macro_f1`."""
    return highest(scores, lambda found: mean_macro_f1(scores.harmful, found, scores.datasets))


def highest(scores: Scores, measure: Callable[[NDArray[np.bool_]], float]) -> float:
    """Return the threshold whose verdicts, bool [rows], have the highest measure.

    Of several that are equally good it is the middle one, which depends the least on single rows.
    """
    grid = np.linspace(0.01, 0.99, 99)
    measured = np.array([measure(scores.scores >= threshold) for threshold in grid])
    best = np.flatnonzero(measured >= measured.max() - 1e-12)
    return float(round(grid[best[len(best) // 2]], 2))


def false_positive_threshold(scores: Scores, rate: float) -> float:
    """Return a threshold that flags as many rows as it can, but at most `rate` of the safe ones.

    Raises:
        InputError: safe rows that must not be flagged score 1, which every threshold flags.
    """
    safe = np.sort(scores.scores[~scores.harmful])[::-1]
    allowed = int((np.arange(1, len(safe) + 1) / len(safe) <= rate).sum())
    if allowed >= len(safe):
        return 0.0
    if safe[allowed] >= 1.0:
        raise InputError(
            f"no threshold flags at most {rate:.2%} of the {len(safe)} safe rows: "
            f"{int((safe >= 1.0).sum())} of them score 1; scale the temperature, or allow more"
        )
    higher = scores.scores[scores.scores > safe[allowed]]
    return float((safe[allowed] + higher.min(initial=1.0)) / 2)


def precision_threshold(scores: Scores, target: float) -> float:
    """Return a threshold that flags as many rows as it can at a precision of `target` or more.

    Raises:
        InputError: no threshold reaches it.
    """
    precision, _, thresholds = precision_recall(scores.harmful, scores.scores)
    reached = np.flatnonzero(precision >= target)
    if reached.size == 0:
        raise InputError(f"no threshold has precision {target}; the best is {precision.max():.3f}")
    return _just_below(scores, thresholds[reached[-1]])


def recall_threshold(scores: Scores, target: float) -> float:
    """Return a threshold that flags as few rows as it can at a recall of `target` or more."""
    _, recall, thresholds = precision_recall(scores.harmful, scores.scores)
    return _just_below(scores, thresholds[np.flatnonzero(recall >= target)[0]])


def _just_below(scores: Scores, score: float) -> float:
    """Return the middle between `score` and the next lower one, so that rounding loses no row."""
    lower = scores.scores[scores.scores < score]
    return float((score + lower.max(initial=0.0)) / 2)


_RULES = {
    "fpr": false_positive_threshold,
    "precision": precision_threshold,
    "recall": recall_threshold,
}
