"""What a guard gives back for a text."""

from dataclasses import dataclass, field
from typing import Any

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.text.passage import Span

UNREADABLE = "unreadable"  # the tier of a text that is not known well enough to be called safe


@dataclass(frozen=True)
class ScoreResult:
    """The verdict on one text.

    Attributes:
        score: probability of harm, 0 to 1.
        is_harmful: whether `score` is at least `threshold`; None where it is not, and too much of
            the text is unknown to the tokenizer for a verdict of safe.
        threshold: the threshold that was applied.
        tokens: of the whole text, special ones included; of an ensemble, the most of its members'.
        truncated: whether some of the text was not read.
        span: start and end, in characters of the text as given (prompt and response joined by a
            newline), of the part that the score is of; None for the whole.
        unknown: how much of the text the tokenizer does not know, 0 to 1: the share of its tokens
            or of its characters, whichever is more.
        tier: name of the bundle's tier that the score falls in; None below the lowest, and where
            the bundle was not calibrated; "unreadable" where `is_harmful` is None.
        features: float32 [n_features], the neurons that the head read, where they were asked for.
    """

    score: float
    is_harmful: bool | None
    threshold: float
    tokens: int
    truncated: bool = False
    span: Span | None = None
    unknown: float = 0.0
    tier: str | None = None
    features: FloatArray | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON: all but the features, and no tier where none is."""
        verdict = {
            "score": self.score,
            "is_harmful": self.is_harmful,
            "threshold": self.threshold,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "span": self.span,
            "unknown": self.unknown,
        }
        return verdict if self.tier is None else {**verdict, "tier": self.tier}
