"""What a guard gives back for a text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.backends.verdicts import (
    HeadScore,
    SpanScore,
    categories_to_dict,
    heads_to_dict,
    orders_to_dict,
    response_to_dict,
    spans_to_dict,
)
from siren_runtime.text.passage import Span

UNREADABLE = "unreadable"  # the tier of a text that is not known well enough to be called safe


@dataclass(frozen=True)
class ScoreResult:
    """The verdict on one text.

    Attributes:
        score: probability of harm, 0 to 1.
        is_harmful: whether `score` is at least `threshold`, or that of a span or a label its own;
            None where none is, and too much of the text is unknown to the tokenizer for a verdict
            of safe.
        threshold: the threshold that was applied.
        as_response: whether threshold (unless a call gave one) and tiers were those that the bundle
            has for texts with a response.
        tokens: of the whole text, special ones included; of an ensemble, the most of its members'.
        truncated: whether some of the text was not read.
        span: start and end, in characters of the text as given (prompt and response joined by a
            newline), of the part that the score is of; None for the whole, and for trajectories.
        unknown: how much of what was read the tokenizer does not know, 0 to 1: the share of its
            tokens, of its characters, or of those in words that invisible ones cut, whichever is
            most; of a trajectory without its middle that of the end of which it is more.
        tier: name of the bundle's tier that `risk` falls in; None below the lowest, and where
            the bundle was not calibrated; "unreadable" where `is_harmful` is None.
        risk: the largest of `score` and those of spans and labels, each moved in log-odds so that
            its threshold stands at `threshold`; what texts are ranked by.
        spans: the highest of each size, if spans were asked for and the text is longer than the
            size; the one that is the most harmful for its threshold comes first.
        features: float32 [n_features], the neurons that the head read, where they were asked for.
        categories: probability by name, of the first head that has categories: labels, or more
            than two classes. In a long text each is that of its highest window.
        flagged: those labels whose probability is at least their threshold.
        heads: the verdict of each head by name, the primary one's first, whose is the above.
        orders: of a polynomial head, the probability of harm by each order, ascending.
        omitted: start and end, in characters of the text that `Guard.render_trajectory` gives, of
            what was not read of a trajectory; None where all was, and for texts.
        unread: where a trajectory has pictures, sound or schemas of parameters that are not in that
            text, such as "tools[0].parameters.unit.enum".
        exit: how many blocks were run, where an exit decided, whose `score` is then not the whole
            guard's, but on the same side of every threshold as the exit expects that to be; None
            where the whole guard decided. Of a long text, for the window that `span` names.
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
    categories: Mapping[str, float] = field(default_factory=dict)
    flagged: tuple[str, ...] = ()
    heads: Mapping[str, HeadScore] = field(default_factory=dict)
    orders: tuple[float, ...] = ()
    omitted: Span | None = None
    unread: tuple[str, ...] = ()
    exit: int | None = None
    as_response: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON: all but the features; no tier, spans, categories,
        unread or exit where there are none, and no heads where there is one.
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
        verdict |= response_to_dict(self.as_response)
        if self.omitted is not None:
            verdict["omitted"] = self.omitted
        if self.unread:
            verdict["unread"] = list(self.unread)
        if self.exit is not None:
            verdict["exit"] = self.exit
        verdict |= spans_to_dict(self.risk, self.spans)
        verdict |= categories_to_dict(self.risk, self.categories, self.flagged)
        return verdict | orders_to_dict(self.orders) | heads_to_dict(self.heads)
