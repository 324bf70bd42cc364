"""Thresholds of texts without a response, and of those with one, each by its own rows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold, Tier
from siren_runtime.scoring.verdict import log_odds, moved

from .calibrate import find_threshold, make_tiers, with_thresholds
from .calibrate_spans import SpanScores, find_span_thresholds
from .evaluate import Scores

LEAST_ROWS = 100  # of each class: 1 % of fewer safe ones is not one row


@dataclass(frozen=True)
class Found:
    """What rules found; None where they were not asked for.

    `responses` is None where there are too few rows to choose it: what was found is then by all
    rows, and holds for all texts.
    """

    threshold: float | None
    tiers: list[Tier] | None
    responses: ResponseThresholds | None


def choose(scores: Scores, threshold: str | None, tiers: Mapping[str, str], old: Decision) -> Found:
    """Choose a threshold and tiers by all rows.

    The threshold is for whole texts. Tiers are reached by spans too, so they are chosen by `risks`.

    Args:
        threshold, tiers: rules, as `find_threshold` takes them.
        old: how the head decided before, whose spans stay.

    Raises:
        InputError, BundleError: no threshold meets a rule, or two tiers are equal.
    """
    chosen = find_threshold(scores, threshold) if threshold else None
    reached = risks(scores, with_thresholds(old, chosen, None, None))
    found = {name: find_threshold(reached, rule) for name, rule in tiers.items()}
    return Found(chosen, make_tiers(found, "--tier") if found else None, None)


def risks(scores: Scores, decision: Decision) -> Scores:
    """The scores by which tiers go: of each row the highest of its own and those of its spans, as
    `ScoreResult.risk`.

    Args:
        scores: with spans of the sizes that the decision has thresholds for; those without have
            nothing but their own.
    """
    if not scores.spans.size:
        return scores
    found = scores.scores.copy()
    for row, has_response in enumerate(scores.has_response):
        decides = (decision.responses if has_response else None) or decision
        for span, score in zip(decides.spans or decision.spans, scores.spans[row], strict=True):
            shift = log_odds(decides.threshold) - log_odds(span.threshold)
            risk = moved(float(score), shift) if score else 0.0
            if score >= span.threshold:
                risk = max(risk, decides.threshold)  # which the move may have rounded below it
            found[row] = max(found[row], risk)
    return replace(scores, scores=found)


def choose_each(scores: Scores, threshold: str, tiers: Mapping[str, str], old: Decision) -> Found:
    """Choose by the rows without a response, and apart from that by those with one.

    Args, Raises: as `choose`.
    """
    parts = scores.of(~scores.has_response), scores.of(scores.has_response)
    if any(np.bincount(part.harmful, minlength=2).min() < LEAST_ROWS for part in parts):
        return choose(scores, threshold, tiers, old)
    spans = (old.responses.spans if old.responses else None) or old.spans
    of_texts = choose(parts[0], threshold, tiers, old)
    of_responses = choose(parts[1], threshold, tiers, msgspec.structs.replace(old, spans=spans))
    assert of_responses.threshold is not None
    responses = ResponseThresholds(of_responses.threshold, of_responses.tiers or [])
    return Found(of_texts.threshold, of_texts.tiers, responses)


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
