"""When exits may decide on a text, or on a stream.

Bounds are chosen for the thresholds that a bundle has. So exits decide only where these apply.
"""

from collections.abc import Sequence
from dataclasses import replace

from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.thresholds import Tier
from siren_runtime.text.reading import Limits


def with_early(
    limits: Limits,
    manifests: Sequence[Manifest],
    threshold: float,
    tiers: Sequence[Tier],
    features: bool,
) -> Limits:
    """The limits of a call, and whether exits may decide in it: on texts that have no spans.

    Args:
        threshold: of the call.
        tiers: of the guard.
        features: whether the call asks for them.
    """
    early = not features and cutoffs_of_exits(manifests, threshold, tiers)
    return replace(limits, early=bool(early))


def cutoffs_of_exits(
    manifests: Sequence[Manifest], threshold: float, tiers: Sequence[Tier]
) -> list[float] | None:
    """The cutoffs of exits that decide: of a guard of one bundle that decides as this one says."""
    manifest, *others = manifests
    cascade = manifest.cascade
    if others or cascade is None or not cascade.decides:
        return None
    is_own = threshold == manifest.threshold and [*tiers] == manifest.tiers
    return cascade.cutoffs if is_own else None
