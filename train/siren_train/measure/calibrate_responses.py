"""Thresholds of texts without a response, and of those with one, each by its own rows."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.thresholds import SpanThreshold, Tier
from siren_runtime.errors import InputError
from siren_runtime.scoring.verdict import HeadJudge

from .calibrate_spans import SpanScores, find_span_thresholds
from .evaluate import Scores
from .threshold_rules import find_threshold
from .tiers import make_tiers

LEAST_ROWS = 100  # of each class: 1 % of fewer safe ones is not one row


def choose_thresholds(scores: Scores, rule: str) -> tuple[float, float] | None:
    """Choose a threshold by the rows without a response, and one by those with one.

    Args:
        rule: as `find_threshold` takes it.

    Returns:
        Both; None where there are too few rows of a class for one of them.

    Raises:
        InputError: no threshold meets the rule.
    """
    parts = scores.of(~scores.has_response), scores.of(scores.has_response)
    if any(np.bincount(part.harmful, minlength=2).min() < LEAST_ROWS for part in parts):
        return None
    of_texts, of_responses = (find_threshold(part, rule) for part in parts)
    return of_texts, of_responses


def choose_tiers(
    scores: Scores, rules: Mapping[str, str], decision: Decision, *, each: bool
) -> list[list[Tier]]:
    """Choose tiers by all rows, or by those without and those with a response.

    Spans reach tiers too, so they are chosen by `risks`.

    Args:
        rules: as `find_threshold` takes them, by the names of tiers.
        decision: how the head decides otherwise.

    Returns:
        The tiers of all texts, or of both, which have one order.

    Raises:
        InputError: no threshold meets a rule, or the rules order the tiers of both otherwise.
        BundleError: two tiers are equal.
    """
    reached = risks(scores, decision)
    with_response = scores.has_response
    parts = [reached.of(~with_response), reached.of(with_response)] if each else [reached]
    found = [
        make_tiers({name: find_threshold(part, rule) for name, rule in rules.items()}, "--tier")
        for part in parts
    ]
    orders = [", ".join(f"{tier.name} from {tier.threshold:.4f}" for tier in one) for one in found]
    if any([tier.name for tier in one] != [tier.name for tier in found[0]] for one in found):
        raise InputError(
            "--tier: the rules give tiers of other orders for prompts and for responses: "
            f"{orders[0]}; and with a response {orders[1]}; give rules that keep one order, or "
            "leave out --responses"
        )
    return found


def risks(scores: Scores, decision: Decision) -> Scores:
    """The scores by which tiers go: of each row the highest of its own and those of its spans, as
    `ScoreResult.risk`.

    Args:
        scores: with spans of the sizes that the decision has thresholds for; those without have
            nothing but their own.
    """
    if not scores.spans.size:
        return scores
    spans = {span.tokens: span.threshold for span in decision.spans}
    judge = HeadJudge(decision.threshold, (), spans, {}, decision.responses)
    found = scores.scores.copy()
    for row, has_response in enumerate(scores.has_response):
        of_row = judge.of_text(has_response)
        for own, score in zip(of_row.spans.values(), scores.spans[row].tolist(), strict=True):
            if score:
                found[row] = max(found[row], of_row.risk_of(score, own, of_row.threshold))
    return replace(scores, scores=found)


def choose_spans(
    scores: SpanScores, rule: str, by_response: bool
) -> tuple[list[SpanThreshold], list[SpanThreshold] | None]:
    """Choose thresholds of spans by all rows, or by those without and those with a response.

    A safe response may follow a harmful prompt, of which a span by itself is harmful: one threshold
    for all texts would have to lie above it.

    Args:
        rule: as `find_span_thresholds` takes it.
        by_response: whether responses have thresholds of their own. Where no row has one, spans of
            all texts are then alike.

    Returns:
        The spans of texts without a response, or of all; and those of texts with one, or None.

    Raises:
        InputError: as `find_span_thresholds`.
    """
    of_texts, *of_responses = span_groups(scores, by_response)
    found = find_span_thresholds(of_texts, rule)
    return found, find_span_thresholds(of_responses[0], rule) if of_responses else None


def span_groups(scores: SpanScores, by_response: bool) -> list[SpanScores]:
    """The rows by which thresholds of spans are chosen: all, or without and with a response."""
    with_response = scores.has_response
    if not by_response or with_response.all() or not with_response.any():
        return [scores]
    return [scores.of(~with_response), scores.of(with_response)]
