"""From scores to a verdict: thresholds, tiers, and what is too little known to be called safe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from siren_runtime.bundle.thresholds import Tier, tier_of
from siren_runtime.errors import InputError, SirenError
from siren_runtime.text.reading import Limits

from .call import Call
from .result import UNREADABLE, ScoreResult, SpanScore
from .scorer import TextScore

_SMALLEST = 2.0**-53  # the distance of 1 to the largest float64 below it


@dataclass(frozen=True)
class Judge:
    """Decides on texts.

    Attributes:
        threshold: harmful from this score, where a call passes none.
        tiers: by falling threshold.
        limits: how much of a text may be unknown, and what is done with one of which more is.
        spans: from which score a span of so many tokens is as harmful as a text of `threshold`;
            where a size is not there, that is `threshold` itself.
    """

    threshold: float
    tiers: tuple[Tier, ...]
    limits: Limits
    spans: Mapping[int, float] = field(default_factory=dict)

    def decide(
        self, risk: float, threshold: float, unknown: float
    ) -> tuple[bool | None, str | None]:
        """Whether a risk is harmful, and its tier; neither harmful nor safe where too much of the
        text is unknown for a low one to say anything.
        """
        if risk < threshold and unknown > self.limits.max_unknown:
            return None, UNREADABLE
        return risk >= threshold, tier_of(self.tiers, risk)

    def verdicts(
        self, by_member: Sequence[Sequence[TextScore | SirenError]], call: Call
    ) -> list[ScoreResult | SirenError]:
        """Decide on each text of a call from what each member makes of all of them."""
        return [self._verdict(scored, call) for scored in zip(*by_member, strict=True)]

    def _verdict(
        self, scored: Sequence[TextScore | SirenError], call: Call
    ) -> ScoreResult | SirenError:
        """Decide on one text from what each member makes of it: the mean of their scores."""
        good = []
        for one in scored:
            if isinstance(one, SirenError):
                return one
            good.append(one)
        score = float(np.mean([one.score for one in good]))
        spans = self._spans(good, call.threshold)
        risk = max([score, *(risk for risk, _ in spans)])
        unknown = max(one.unknown for one in good)
        is_harmful, tier = self.decide(risk, call.threshold, unknown)
        if is_harmful is None and self.limits.unreadable == "refuse":
            return InputError(
                f"{unknown:.0%} of the text is unknown to the tokenizer, more than "
                f"{self.limits.max_unknown:.0%}, so its low score says nothing; to get such "
                "texts back undecided, ask for them (unreadable='review', --unreadable review)"
            )
        return ScoreResult(
            score=score,
            is_harmful=is_harmful,
            threshold=call.threshold,
            tokens=max(one.tokens for one in good),
            truncated=any(one.truncated for one in good),
            span=max(good, key=lambda one: one.score).span,
            unknown=unknown,
            tier=tier,
            risk=risk,
            spans=tuple(span for _, span in spans),
            features=np.concatenate([one.features for one in good]) if call.features else None,
        )

    def _spans(
        self, scored: Sequence[TextScore], threshold: float
    ) -> list[tuple[float, SpanScore]]:
        """The risk and the score of the spans of each size that every member has, risks falling.

        The score is the mean of the members' highest, the place that of the highest of all.
        """
        by_size = [{span.size: span for span in one.spans} for one in scored]
        found = []
        for size in set.intersection(*(set(spans) for spans in by_size)):
            of_size = [spans[size] for spans in by_size]
            score = float(np.mean([span.score for span in of_size]))
            shift = _log_odds(self.threshold) - _log_odds(self.spans.get(size, self.threshold))
            harmful_from = _moved(threshold, -shift)
            place = max(of_size, key=lambda span: span.score).span
            found.append((_moved(score, shift), SpanScore(size, score, harmful_from, place)))
        return sorted(found, key=lambda item: (-item[0], item[1].tokens))


def _log_odds(probability: float) -> float:
    clipped = min(max(probability, _SMALLEST), 1 - _SMALLEST)
    return math.log(clipped) - math.log1p(-clipped)


def _moved(probability: float, shift: float) -> float:
    """A probability whose log-odds are moved by `shift`; as it is where there is no shift."""
    return 1 / (1 + math.exp(-_log_odds(probability) - shift)) if shift else probability
