"""What a stream gives back after a feed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from siren_runtime.backends.verdicts import (
    HeadScore,
    SpanScore,
    categories_to_dict,
    heads_to_dict,
    response_to_dict,
    spans_to_dict,
)

from .decision import Decision


@dataclass(frozen=True)
class StreamResult:
    """The verdict on a stream after a feed. Where text slid out with it, that is the worst of those
    on the parts in which the piece was read.

    Attributes:
        score: probability of harm of the text so far, 0 to 1.
        is_harmful: whether `score` is at least `threshold`, or a span's its own; None where
            neither is, and too much of the text is unknown to the tokenizer for a verdict of safe.
        threshold: the threshold that was applied.
        tokens: tokens that count so far, those that slid out of the stream included.
        computed: tokens that this feed ran through the engine.
        rolled_back: tokens read before that this feed took back, since the new text changed them.
        slid: whether text slid out of the stream, so that the score is no longer exact.
        truncated: whether text that slid out is out of the score too, as where a stream is read
            anew at each feed.
        span: of a truncated stream, the part that the score is of, in characters of the text as
            given: the prompt, a newline and what was fed; None for the whole.
        unknown: how much of the text held the tokenizer does not know, 0 to 1, as in `ScoreResult`.
        decisions: those of the stream's rules in force at a token that this feed read.
        tier: name of the bundle's tier that the risk falls in; None below the lowest, and where
            the bundle was not calibrated; "unreadable" where `is_harmful` is None.
        spans: the highest of each size that is complete, as in `ScoreResult`.
        risk, categories, flagged, heads, as_response, exit: as in `ScoreResult`.
    """

    score: float
    is_harmful: bool | None
    threshold: float
    tokens: int
    computed: int
    rolled_back: int
    slid: bool
    truncated: bool = False
    span: tuple[int, int] | None = None
    unknown: float = 0.0
    decisions: tuple[Decision, ...] = ()
    tier: str | None = None
    risk: float = 0.0
    spans: tuple[SpanScore, ...] = ()
    categories: Mapping[str, float] = field(default_factory=dict)
    flagged: tuple[str, ...] = ()
    heads: Mapping[str, HeadScore] = field(default_factory=dict)
    as_response: bool = False
    exit: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, decisions and heads as dictionaries; no tier, exit, spans or
        categories where there are none, and no heads where there is one.
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        left_out = [name for name in ("tier", "exit") if fields[name] is None]
        others = "risk", "spans", "categories", "flagged", "heads", "as_response"
        for name in (*others, *left_out):
            del fields[name]
        fields["decisions"] = [decision.to_dict() for decision in self.decisions]
        fields |= response_to_dict(self.as_response)
        fields |= categories_to_dict(self.risk, self.categories, self.flagged)
        fields |= spans_to_dict(self.risk, self.spans)
        return fields | heads_to_dict(self.heads)


@dataclass(frozen=True)
class TokenScore:
    """A token of a stream and the score of the text that ends with it.

    Attributes:
        token: its id.
        start, end: where it stands in the cleaned text, in characters from the beginning of the
            stream; both 0 for special tokens and where ids were fed.
        score: probability of harm up to here.
        text: the cleaned text from start to end.
        space: the cleaned text, of no token, between the token before and this one.
    """

    token: int
    start: int
    end: int
    score: float
    text: str
    space: str = ""
