"""When exits may decide on a text, or on a stream.

Bounds are chosen for the thresholds that a bundle has. So exits decide only where these apply.
"""

from collections.abc import Sequence
from dataclasses import replace

from siren_runtime.bundle.manifest import Manifest
from siren_runtime.text.reading import Limits

from .verdict import HeadJudge


def with_early(
    limits: Limits,
    manifests: Sequence[Manifest],
    threshold: float,
    primary: HeadJudge,
    features: bool,
) -> Limits:
    """The limits of a call, and whether exits may decide in it: on texts that have no spans.

    Args:
        threshold: of the call.
        primary: what decides by the guard's first head.
        features: whether the call asks for them.
    """
    early = not features and cutoffs_of_exits(manifests, threshold, primary)
    return replace(limits, early=bool(early))


def cutoffs_of_exits(
    manifests: Sequence[Manifest], threshold: float, primary: HeadJudge
) -> list[float] | None:
    """The cutoffs of exits that decide: of a guard of one bundle that decides as this one says."""
    manifest, *others = manifests
    cascade = manifest.cascade
    if others or cascade is None or not cascade.decides:
        return None
    own = manifest.decision(manifest.primary)
    decides = threshold, [*primary.tiers], primary.responses
    return cascade.cutoffs if decides == (own.threshold, own.tiers, own.responses) else None
