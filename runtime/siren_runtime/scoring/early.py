"""Exits: when they may decide on a text, and the score that a decision is.

Bounds are chosen for the thresholds that a bundle has. So an exit decides only where these apply,
and only that a score lies below all of them, or reaches all of them: the verdict and the tier are
then those that the bounds were measured with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.bundle.cascade import Cascade
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

    They may where the guard is one bundle that decides as it says, by whole texts alone.

    Args:
        threshold: of the call.
        tiers: of the guard.
        features: whether the call asks for them.
    """
    manifest, *others = manifests
    early = (
        not (others or features or limits.spans)
        and manifest.cascade is not None
        and manifest.cascade.decides
        and threshold == manifest.threshold
        and [*tiers] == manifest.tiers
    )
    return replace(limits, early=early)


@dataclass(frozen=True)
class Exits:
    """Decides by the scores of exits."""

    cascade: Cascade

    def decide(self, number: int, scores: FloatArray) -> FloatArray:
        """The score of each text that an exit decides on, NaN of the others.

        It is the exit's own, moved below the lowest cutoff or up to the highest where it lies
        beyond. A score that is not finite decides nothing.

        Args:
            number: the exit's.
            scores: its scores, [texts].

        Returns:
            float32 [texts].
        """
        one, cutoffs = self.cascade.exits[number], self.cascade.cutoffs
        decided = np.full(len(scores), np.nan, np.float32)
        if one.low is not None and cutoffs[0] > 0.0:
            safe = scores <= one.low
            decided[safe] = np.minimum(scores[safe], _below(cutoffs[0]))
        if one.high is not None:
            harmful = scores >= one.high
            decided[harmful] = np.maximum(scores[harmful], _from(cutoffs[-1]))
        return decided


def _below(cutoff: float) -> np.float32:
    """The largest float32 below a cutoff."""
    nearest = np.float32(cutoff)
    lower: np.float32 = np.nextafter(nearest, np.float32(-1))
    return nearest if float(nearest) < cutoff else lower


def _from(cutoff: float) -> np.float32:
    """The smallest float32 that reaches a cutoff."""
    nearest = np.float32(cutoff)
    higher: np.float32 = np.nextafter(nearest, np.float32(2))
    return nearest if float(nearest) >= cutoff else higher
