"""Thresholds and tiers: what they may be, and the tier that a score falls in."""

from collections.abc import Sequence
from typing import Annotated, SupportsFloat

import msgspec

from siren_runtime.errors import BundleError, InputError

from .arguments import real_number
from .types import Positive, Probability, Strict


class Tier(Strict, frozen=True):
    """A named band of scores: from `threshold` up to the next tier's."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    threshold: Probability


class SpanThreshold(Strict, frozen=True):
    """From which score a span of `tokens` tokens is harmful."""

    tokens: Positive
    threshold: Probability


class ResponseThresholds(Strict, frozen=True):
    """From which scores a text with a response is harmful, its tiers, and its spans.

    They take the place of the threshold and the tiers of texts without one; the tiers' names are
    the same. So do the spans, of the same sizes, where there are any.
    """

    threshold: Probability
    tiers: list[Tier] = msgspec.field(default_factory=list)
    spans: list[SpanThreshold] = msgspec.field(default_factory=list)


def checked_threshold(value: SupportsFloat, name: str = "threshold") -> float:
    """Return a threshold as a float; `name` is what errors call it.

    Raises:
        InputError: it is not a number from 0 to 1.
    """
    threshold = real_number(name, value)
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"{name} must lie from 0 to 1, found {threshold}")
    return threshold


def check_tiers(tiers: Sequence[Tier], origin: str) -> None:
    """Refuse tiers that do not name each score's band uniquely.

    Raises:
        BundleError: two tiers share a name, or the thresholds do not fall.
    """
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise BundleError(f"{origin}: each tier needs a name of its own, found {names}")
    thresholds = [tier.threshold for tier in tiers]
    if sorted(set(thresholds), reverse=True) != thresholds:
        raise BundleError(
            f"{origin}: the tiers' thresholds must fall from the first to the last, found "
            f"{thresholds}"
        )


def check_response_tiers(
    responses: ResponseThresholds, of_texts: Sequence[Tier], origin: str
) -> None:
    """Refuse tiers of texts with a response that are not named as those of other texts.

    Raises:
        BundleError: they are not, or are none.
    """
    check_tiers(responses.tiers, f"{origin}: responses")
    tiers, own = [tier.name for tier in responses.tiers], [tier.name for tier in of_texts]
    if tiers != own:
        raise BundleError(
            f"{origin}: the tiers of responses are {tiers}; expected those of other texts: {own}"
        )


def check_spans(spans: Sequence[SpanThreshold], origin: str) -> None:
    """Refuse thresholds of spans that do not ascend in size.

    Raises:
        BundleError: they do not.
    """
    sizes = [span.tokens for span in spans]
    if sorted(set(sizes)) != sizes:
        raise BundleError(f"{origin}: the sizes of spans must ascend, found {sizes}")


def check_response_spans(
    responses: ResponseThresholds, of_texts: Sequence[SpanThreshold], origin: str
) -> None:
    """Refuse spans of texts with a response of other sizes than those of other texts.

    Raises:
        BundleError: there are some, and their sizes are others.
    """
    sizes, own = [s.tokens for s in responses.spans], [s.tokens for s in of_texts]
    if sizes and sizes != own:
        raise BundleError(
            f"{origin}: the spans of responses are of {sizes} tokens; expected those of other "
            f"texts: {own}"
        )


def tier_of(tiers: Sequence[Tier], score: float) -> str | None:
    """Return the name of the tier that a score falls in; None below the lowest."""
    return next((tier.name for tier in tiers if score >= tier.threshold), None)
