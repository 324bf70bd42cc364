"""How a head decides with other thresholds or another temperature, and how a bundle takes that."""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from siren_runtime.bundle.cascade import Cascade, Exit
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold, Tier

from .guard_json import write_manifest


def with_thresholds(
    old: Decision,
    threshold: float | None,
    tiers: Sequence[Tier] | None,
    responses: ResponseThresholds | None,
) -> Decision:
    """How a head decides with a new threshold, new tiers or new ones of texts with a response.

    A new threshold holds for texts with a response too where they get none of their own, and so do
    new tiers, which leave them the threshold they have.

    Args:
        threshold, tiers: None keeps them.
        responses: of texts with a response. Without tiers or spans they take those that `old` keeps
            for them.
    """
    changes: dict[str, object] = {}
    if threshold is not None:
        changes["threshold"] = threshold
    if tiers is not None:
        changes["tiers"] = list(tiers)
    if responses is not None or threshold is not None:
        changes["responses"] = responses and _completed(responses, old, tiers)
    elif tiers is not None and old.responses is not None:
        changes["responses"] = msgspec.structs.replace(old.responses, tiers=[*tiers])
    return msgspec.structs.replace(old, **changes)


def _completed(
    responses: ResponseThresholds, kept: Decision, tiers: Sequence[Tier] | None
) -> ResponseThresholds:
    """Thresholds of responses, which take the tiers and spans that are kept where they have none.

    Args:
        tiers: new ones of other texts, with which none are kept.
    """
    old = kept.responses
    return ResponseThresholds(
        responses.threshold,
        responses.tiers or ((old or kept).tiers if tiers is None else []),
        responses.spans or (old.spans if old is not None else []),
    )


def with_spans(
    old: Decision, spans: Sequence[SpanThreshold], of_responses: Sequence[SpanThreshold] | None
) -> Decision:
    """How a head decides with new thresholds of spans.

    Args:
        of_responses: of texts with a response, where these have thresholds of their own; None are
            those of other texts.
    """
    responses = old.responses
    if responses is not None:
        responses = msgspec.structs.replace(responses, spans=list(of_responses or []))
    return msgspec.structs.replace(old, spans=list(spans), responses=responses)


def tempered(old: Decision, temperature: float) -> Decision:
    """How a head decides as before whose logits are divided by another temperature.

    Thresholds move with it, so that verdicts stay as they were; this holds for heads of two
    classes.
    """
    scale = temperature / old.temperature
    return msgspec.structs.replace(
        old,
        temperature=temperature,
        threshold=rescaled(old.threshold, scale),
        tiers=[Tier(t.name, rescaled(t.threshold, scale)) for t in old.tiers],
        spans=[SpanThreshold(s.tokens, rescaled(s.threshold, scale)) for s in old.spans],
        responses=old.responses
        and ResponseThresholds(
            rescaled(old.responses.threshold, scale),
            [Tier(t.name, rescaled(t.threshold, scale)) for t in old.responses.tiers],
            [SpanThreshold(s.tokens, rescaled(s.threshold, scale)) for s in old.responses.spans],
        ),
    )


def rescaled(threshold: float, scale: float) -> float:
    """Return where a threshold lies once log-odds are divided by `scale`. 0 and 1 stay."""
    if not 0.0 < threshold < 1.0:
        return threshold
    log_odds = math.log(threshold) - math.log1p(-threshold)
    return 1 / (1 + math.exp(-log_odds / scale))


def write_decided(bundle: Path, manifest: Manifest, head: str, decision: Decision) -> Manifest:
    """Write how a head decides into the bundle's guard.json, and return the new manifest.

    Bounds of exits and of orders are for the thresholds and the temperature that they were chosen
    with, so new ones drop them.

    Args:
        manifest: the bundle's.

    Raises:
        BundleError: the result would not be a valid manifest.
        InputError: guard.json cannot be written.
    """
    changed = manifest.deciding(head, decision)
    if changed.cutoffs != manifest.cutoffs or changed.temperature != manifest.temperature:
        changed = _without_bounds(changed)
    return write_manifest(bundle, changed)


def _without_bounds(manifest: Manifest) -> Manifest:
    """The manifest with exits that decide nothing, and no bounds of orders."""
    manifest = msgspec.structs.replace(manifest, orders=None)
    if manifest.cascade is None:
        return manifest
    exits = [Exit(one.depth, one.head) for one in manifest.cascade.exits]
    return msgspec.structs.replace(manifest, cascade=Cascade(exits))
