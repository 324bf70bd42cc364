"""Thresholds and a temperature, written into a bundle by hand."""

from collections.abc import Sequence
from pathlib import Path

from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold, Tier
from siren_train.measure.decisions import tempered, with_spans, with_thresholds, write_decided


def write_calibration(
    bundle: Path,
    *,
    threshold: float | None = None,
    tiers: Sequence[Tier] | None = None,
    temperature: float | None = None,
    spans: Sequence[SpanThreshold] | None = None,
    responses: ResponseThresholds | None = None,
) -> Manifest:
    """Write what is given into the bundle's guard.json, and return the new manifest.

    Args:
        responses: of texts with a response. Without tiers or spans they take those that the bundle
            keeps for them; new spans of other texts hold for these too. A new threshold holds for
            these texts too where they get none of their own, and so do new tiers, which leave them
            the threshold they have.

    A new temperature moves scores. Thresholds that are kept move with it, so that verdicts stay as
    they were; this holds for heads of two classes. Bounds of exits and of orders are for the
    thresholds and the temperature that they were chosen with, so new ones drop them.
    """
    manifest = load_bundle(bundle).manifest
    decision = manifest.decision(manifest.primary)
    if temperature is not None:
        decision = tempered(decision, temperature)
    decision = with_thresholds(decision, threshold, tiers, responses)
    if spans is not None:
        decision = with_spans(decision, spans, None)
    return write_decided(bundle, manifest, manifest.primary, decision)
