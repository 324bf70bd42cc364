"""What a guard gives back for a text."""

from dataclasses import asdict, dataclass, field
from typing import Any

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.text.passage import Span

UNREADABLE = "unreadable"  # the tier of a text that is not known well enough to be called safe


@dataclass(frozen=True)
class SpanScore:
    """The highest score of a text's spans of one size.

    Attributes:
        tokens: how many a span of the size has.
        score: probability of harm, by the mean over the span's tokens.
        threshold: harmful from this score.
        span: start and end of the span, in characters of the text as given.
    """

    tokens: int
    score: float
    threshold: float
    span: Span


@dataclass(frozen=True)
class ScoreResult:
    """The verdict on one text.

    Attributes:
        score: probability of harm, 0 to 1.
        is_harmful: whether `score` is at least `threshold`, or that of a span its own; None where
            neither is, and too much of the text is unknown to the tokenizer for a verdict of safe.
        threshold: the threshold that was applied.
        tokens: of the whole text, special ones included; of an ensemble, the most of its members'.
        truncated: whether some of the text was not read.
        span: start and end, in characters of the text as given (prompt and response joined by a
            newline), of the part that the score is of; None for the whole.
        unknown: how much of the text the tokenizer does not know, 0 to 1: the share of its tokens
            or of its characters, whichever is more.
        tier: name of the bundle's tier that `risk` falls in; None below the lowest, and where
            the bundle was not calibrated; "unreadable" where `is_harmful` is None.
        risk: the larger of `score` and the highest span's, moved in log-odds so that its threshold
            stands at `threshold`; what texts are ranked by. `score` where there are no spans.
        spans: the highest of each size, if spans were asked for and the text is longer than the
            size; the one that is the most harmful for its threshold comes first.
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
    risk: float = 0.0
    spans: tuple[SpanScore, ...] = ()
    features: FloatArray | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON: all but the features, and no tier or spans where
        there are none.
        """
        verdict: dict[str, Any] = {
            "score": self.score,
            "is_harmful": self.is_harmful,
            "threshold": self.threshold,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "span": self.span,
            "unknown": self.unknown,
        }
        if self.tier is not None:
            verdict["tier"] = self.tier
        if self.spans:
            verdict |= {"risk": self.risk, "spans": [asdict(span) for span in self.spans]}
        return verdict
