"""From scores to a verdict: thresholds, tiers, and what is too little known to be called safe."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from siren_runtime.bundle.thresholds import Tier, tier_of
from siren_runtime.errors import InputError, SirenError
from siren_runtime.text.reading import Limits

from .call import Call
from .result import UNREADABLE, ScoreResult
from .scorer import TextScore


@dataclass(frozen=True)
class Judge:
    """Decides on texts.

    Attributes:
        threshold: harmful from this score, where a call passes none.
        tiers: by falling threshold.
        limits: how much of a text may be unknown, and what is done with one of which more is.
    """

    threshold: float
    tiers: tuple[Tier, ...]
    limits: Limits

    def decide(
        self, score: float, threshold: float, unknown: float
    ) -> tuple[bool | None, str | None]:
        """Whether a score is harmful, and its tier; neither harmful nor safe where too much of the
        text is unknown for a low score to say anything.
        """
        if score < threshold and unknown > self.limits.max_unknown:
            return None, UNREADABLE
        return score >= threshold, tier_of(self.tiers, score)

    def verdicts(
        self, by_member: Sequence[Sequence[TextScore | SirenError]], call: Call
    ) -> list[ScoreResult | SirenError]:
        """Decide on each text of a call from what each member makes of all of them."""
        return [
            self._verdict(scored, call.threshold, features=call.features)
            for scored in zip(*by_member, strict=True)
        ]

    def _verdict(
        self, scored: Sequence[TextScore | SirenError], threshold: float, *, features: bool
    ) -> ScoreResult | SirenError:
        """Decide on one text from what each member makes of it: the mean of their scores.

        Args:
            features: add the members' features, one after another.
        """
        good = []
        for one in scored:
            if isinstance(one, SirenError):
                return one
            good.append(one)
        score = float(np.mean([one.score for one in good]))
        unknown = max(one.unknown for one in good)
        is_harmful, tier = self.decide(score, threshold, unknown)
        if is_harmful is None and self.limits.unreadable == "refuse":
            return InputError(
                f"{unknown:.0%} of the text is unknown to the tokenizer, more than "
                f"{self.limits.max_unknown:.0%}, so its low score says nothing; to get such "
                "texts back undecided, ask for them (unreadable='review', --unreadable review)"
            )
        return ScoreResult(
            score=score,
            is_harmful=is_harmful,
            threshold=threshold,
            tokens=max(one.tokens for one in good),
            truncated=any(one.truncated for one in good),
            span=max(good, key=lambda one: one.score).span,
            unknown=unknown,
            tier=tier,
            features=np.concatenate([one.features for one in good]) if features else None,
        )
