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
    """The limits of a call, and whether exits may decide in it.

    They may where the guard decides by whole texts alone.

    Args:
        threshold: of the call.
        tiers: of the guard.
        features: whether the call asks for them.
    """
    early = not (features or limits.spans) and exits_decide(manifests, threshold, tiers)
    return replace(limits, early=early)


def exits_decide(manifests: Sequence[Manifest], threshold: float, tiers: Sequence[Tier]) -> bool:
    """Whether a guard is one bundle whose exits decide, and decides itself as that says."""
    manifest, *others = manifests
    return (
        not others
        and manifest.cascade is not None
        and manifest.cascade.decides
        and threshold == manifest.threshold
        and [*tiers] == manifest.tiers
    )
