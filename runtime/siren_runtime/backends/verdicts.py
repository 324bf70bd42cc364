"""What one head says of a text, in results of whole texts and of streams alike."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from siren_runtime.text.passage import Span


@dataclass(frozen=True)
class SpanScore:
    """The highest score of a text's spans of one size.

    Attributes:
        tokens: how many a span of the size has.
        score: probability of harm, by the mean over the span's tokens.
        threshold: harmful from this score.
        span: start and end of the span, in characters of the text as given.
        decides: whether it is what `risk` is of, since it is riskier than the whole text.
    """

    tokens: int
    score: float
    threshold: float
    span: Span
    decides: bool = False


@dataclass(frozen=True)
class HeadScore:
    """The verdict of one head on a text.

    Attributes are those of `siren_runtime.scoring.result.ScoreResult`, which says what they mean.
    """

    score: float
    is_harmful: bool | None
    threshold: float
    span: Span | None = None
    tier: str | None = None
    risk: float = 0.0
    spans: tuple[SpanScore, ...] = ()
    categories: Mapping[str, float] = field(default_factory=dict)
    flagged: tuple[str, ...] = ()
    orders: tuple[float, ...] = ()
    as_response: bool = False

    @property
    def reason(self) -> str:
        """What decides, for people: the score of the text or of a span of it, and its threshold."""
        span = deciding(self.spans)
        by = span or self
        where = f" in {span.tokens} tokens of it" if span else ""
        labels = f", flagged {', '.join(self.flagged)}" if self.flagged else ""
        tier = f", tier {self.tier}" if self.tier else ""
        return f"score {by.score:.4f} of threshold {by.threshold:.4g}{where}{labels}{tier}"

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON: no tier, spans or categories where there are none."""
        verdict: dict[str, Any] = {
            "score": self.score,
            "is_harmful": self.is_harmful,
            "threshold": self.threshold,
            "span": self.span,
        }
        if self.tier is not None:
            verdict["tier"] = self.tier
        verdict |= response_to_dict(self.as_response)
        verdict |= categories_to_dict(self.risk, self.categories, self.flagged)
        return verdict | spans_to_dict(self.risk, self.spans) | orders_to_dict(self.orders)


def deciding(spans: Sequence[SpanScore]) -> SpanScore | None:
    """The span that decides on a text; None where the whole text does."""
    return next((span for span in spans if span.decides), None)


def reason_of(heads: Mapping[str, HeadScore]) -> str:
    """What decides on a text by the first of its heads, which is the primary one."""
    return next(iter(heads.values())).reason


def verdict_of(heads: Mapping[str, HeadScore]) -> dict[str, Any]:
    """What a result of a text and of a stream has of its heads: by all of them the verdict of the
    primary one, which is the first, and the categories of the first that has any.
    """
    primary = next(iter(heads.values()))
    categorical = next((head for head in heads.values() if head.categories), primary)
    return {
        "score": primary.score,
        "is_harmful": primary.is_harmful,
        "threshold": primary.threshold,
        "tier": primary.tier,
        "risk": primary.risk,
        "spans": primary.spans,
        "as_response": primary.as_response,
        "categories": categorical.categories,
        "flagged": categorical.flagged,
        "heads": heads,
    }


def response_to_dict(as_response: bool) -> dict[str, Any]:
    """What JSON has of texts that were decided on by the thresholds of responses."""
    return {"as_response": True} if as_response else {}


def spans_to_dict(risk: float, spans: tuple[SpanScore, ...]) -> dict[str, Any]:
    """What JSON has of spans, and of the risk that is another number because of them."""
    return {"risk": risk, "spans": [asdict(span) for span in spans]} if spans else {}


def orders_to_dict(orders: tuple[float, ...]) -> dict[str, Any]:
    """What JSON has of the orders of a polynomial."""
    return {"orders": list(orders)} if orders else {}


def categories_to_dict(
    risk: float, categories: Mapping[str, float], flagged: tuple[str, ...]
) -> dict[str, Any]:
    """What JSON has of categories, where there are any."""
    if not categories:
        return {}
    return {"risk": risk, "categories": dict(categories), "flagged": list(flagged)}


def heads_to_dict(heads: Mapping[str, HeadScore]) -> dict[str, Any]:
    """What JSON has of several heads."""
    return (
        {"heads": {name: head.to_dict() for name, head in heads.items()}} if len(heads) > 1 else {}
    )
