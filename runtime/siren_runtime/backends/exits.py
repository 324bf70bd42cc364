"""What exits decide: the score that a decision is.

An exit decides only that a score lies below all thresholds that its bounds were chosen for, or
reaches all of them: the verdict and the tier are then those that the bounds were measured with.
"""

from dataclasses import dataclass

import numpy as np

from siren_runtime.bundle.cascade import Cascade

from .outputs import FloatArray


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
