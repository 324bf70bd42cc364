"""What a guard gives back for a text."""

from dataclasses import dataclass, field
from typing import Any

from siren_runtime.backends.outputs import FloatArray


@dataclass(frozen=True)
class ScoreResult:
    """The verdict on one text.

    Attributes:
        score: probability of harm, 0 to 1.
        is_harmful: whether `score` is at least `threshold`.
        threshold: the threshold that was applied.
        tier: name of the bundle's tier that the score falls in; None below the lowest, and where
            the bundle was not calibrated.
        features: float32 [n_features], the neurons that the head read, where they were asked for.
    """

    score: float
    is_harmful: bool
    threshold: float
    tier: str | None = None
    features: FloatArray | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return score, is_harmful and threshold, and the tier where there is one."""
        verdict = {
            "score": self.score,
            "is_harmful": self.is_harmful,
            "threshold": self.threshold,
        }
        return verdict if self.tier is None else {**verdict, "tier": self.tier}
