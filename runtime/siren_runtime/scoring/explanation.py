"""What moved a score: tokens, layers and neurons, and how much each."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from siren_runtime.text.passage import Span


@dataclass(frozen=True)
class PartShare:
    """A token, or a part of a text, and how far it moved the output.

    Attributes:
        text: the cleaned text that stands there; empty for special tokens.
        span: where, in characters of the cleaned text that is explained.
        share: log-odds.
    """

    text: str
    span: Span
    share: float


@dataclass(frozen=True)
class LayerShare:
    """A block whose neurons the head reads.

    Attributes:
        layer: 0-based.
        weight: the factor that the head's training gave it.
        neurons: how many are read of it.
        share: what they moved together, in log-odds.
    """

    layer: int
    weight: float
    neurons: int
    share: float


@dataclass(frozen=True)
class NeuronShare:
    """A neuron that the head reads.

    Attributes:
        layer, channel: where it is.
        value, baseline: its feature in the text, and in the neutral text.
        share: log-odds.
    """

    layer: int
    channel: int
    value: float
    baseline: float
    share: float


@dataclass(frozen=True)
class PairShare:
    """Two neurons that a polynomial head multiplies with one another, or one with itself.

    Attributes:
        layers, channels: where the two are.
        share: log-odds.
    """

    layers: tuple[int, int]
    channels: tuple[int, int]
    share: float

    @property
    def names(self) -> tuple[str, str]:
        """Layer and channel of each, such as 3/127."""
        first, second = zip(self.layers, self.channels, strict=True)
        return "{}/{}".format(*first), "{}/{}".format(*second)


@dataclass(frozen=True)
class Explanation:
    """Why a text scores as it does, against a neutral text of the same length.

    Attributes:
        head, category: whose output it is; a category of "" is the score.
        score: the probability of what is explained, as a result has it. Of a decoder it is the
            streaming graph's, as of a guard that streams or scores spans; in int8 and int4 that may
            differ from the score graph's by some thousandths.
        is_harmful: the head's verdict on the text, as a result has it. None where too much of it is
            unknown for one of safe, and guards refuse it.
        unknown: how much of it the tokenizer does not know, as a result has it.
        log_odds, baseline: the outputs of the text and of the neutral one. Shares of layers add up
            to their difference, but for `residual`, and so do those of parts by attribution.
        residual: what is missing.
        steps: gradients that were taken on the way; 1 where the head is linear.
        text: the cleaned text that was explained: of a long one the window that the score is of,
            a later part of a response behind the end of its prompt, which has a line of its own;
            or the span that decides.
        span: its part of the text as given, in characters; None for the whole.
        size: tokens of the span, as `SpanScore` has it; None where the text or its window decides.
        parts_by: "attribution", exact of tokens of a decoder; or "omission", the output with the
            text less that without the part, which need not add up.
        parts: in the order of the text.
        strongest: the run of parts that moved the output the most towards it.
        layers: ascending.
        neurons: the strongest, either way.
        terms: of a polynomial head, what each order's term moved, from the linear one on. They add
            up to the difference of the outputs.
        pairs: of a polynomial head, the strongest pairs of neurons, either way. All pairs together
            add up to the second of `terms`.
    """

    head: str
    category: str
    score: float
    is_harmful: bool | None
    unknown: float
    log_odds: float
    baseline: float
    residual: float
    steps: int
    text: str
    span: Span | None
    size: int | None
    parts_by: Literal["attribution", "omission"]
    parts: tuple[PartShare, ...]
    strongest: PartShare
    layers: tuple[LayerShare, ...]
    neurons: tuple[NeuronShare, ...]
    terms: tuple[float, ...] = ()
    pairs: tuple[PairShare, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What was explained, where that is not all of a text, and what its score is worth."""
        told = []
        if self.span is not None:
            what = "the window" if self.size is None else f"a span of {self.size} tokens"
            told.append("decided by {} at {}-{}".format(what, *self.span))
        if self.is_harmful is None:
            told.append(
                f"unreadable: {self.unknown:.0%} of the text is unknown to the tokenizer or cut by "
                "invisible characters; its low score says nothing"
            )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Return what can be written as JSON."""
        return asdict(self)


def strongest_run(parts: tuple[PartShare, ...], text: str) -> PartShare:
    """The neighbouring parts whose shares have the largest sum (Kadane's algorithm)."""
    best, best_from, best_to = -float("inf"), 0, 0
    total, start = 0.0, 0
    for place, part in enumerate(parts):
        if total <= 0:
            total, start = 0.0, place
        total += part.share
        if total > best:
            best, best_from, best_to = total, start, place
    run = [part for part in parts[best_from : best_to + 1] if part.span[1] > part.span[0]]
    span = (run[0].span[0], run[-1].span[1]) if run else (0, 0)
    return PartShare(text[slice(*span)], span, best)
