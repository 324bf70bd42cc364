"""From scores to a verdict: thresholds, tiers, and what is too little known to be called safe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import msgspec
import numpy as np

from siren_runtime.backends.readout import HeadText
from siren_runtime.backends.verdicts import HeadScore, SpanScore, verdict_of
from siren_runtime.bundle.heads import Decision, HeadSpec
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold, Tier, tier_of
from siren_runtime.errors import SirenError, UnreadableError
from siren_runtime.text.passage import Span
from siren_runtime.text.reading import Limits

from .call import Call
from .result import UNREADABLE, ScoreResult
from .text_score import TextScore

_SMALLEST = 2.0**-53  # the distance of 1 to the largest float64 below it


@dataclass(frozen=True)
class HeadJudge:
    """Decides by one head.

    Attributes:
        threshold: harmful from this score, where a call passes none.
        tiers: by falling threshold.
        spans: from which score a span of so many tokens is as harmful as a text of `threshold`;
            where a size is not there, that is `threshold` itself.
        labels: from which probability a label is as harmful; empty where labels exclude one
            another.
        responses: the threshold, tiers and spans of texts with a response, where they are others.
    """

    threshold: float
    tiers: tuple[Tier, ...]
    spans: Mapping[int, float]
    labels: Mapping[str, float]
    responses: ResponseThresholds | None = None

    @classmethod
    def of(cls, spec: HeadSpec, decision: Decision) -> "HeadJudge":
        """Take what a manifest says."""
        labels = {label.name: label.threshold for label in decision.labels}
        if spec.has_labels and not labels:
            labels = dict.fromkeys(spec.labels, decision.threshold)
        spans, tiers = _by_size(decision.spans), tuple(decision.tiers)
        return cls(decision.threshold, tiers, spans, labels, decision.responses)

    def of_text(self, has_response: bool) -> "HeadJudge":
        """What decides on a text with or without a response."""
        if not has_response or self.responses is None:
            return self
        own = self.responses
        spans = _by_size(own.spans) or self.spans
        return replace(self, threshold=own.threshold, tiers=tuple(own.tiers), spans=spans)

    def overridden(
        self,
        threshold: float | None,
        tiers: Sequence[Tier] | None,
        spans: Sequence[SpanThreshold] | None,
        responses: ResponseThresholds | None,
    ) -> "HeadJudge":
        """With a threshold, tiers or spans that hold for all texts, where they are given.

        Args:
            responses: what holds for those with a response instead; where it has no spans, and
                none are given for all texts, theirs stay.
        """
        judge, of_responses = self, self.responses
        if threshold is not None:
            labels = {name: self.harmful_from(own, threshold) for name, own in self.labels.items()}
            judge, of_responses = replace(judge, threshold=threshold, labels=labels), None
        if tiers is not None:
            judge = replace(judge, tiers=tuple(tiers))
            if of_responses is not None:
                of_responses = msgspec.structs.replace(of_responses, tiers=[*tiers])
        if spans is not None:
            judge = replace(judge, spans=_by_size(spans))
            if of_responses is not None:
                of_responses = msgspec.structs.replace(of_responses, spans=[])
        if responses is not None:
            kept = self.responses.spans if self.responses and spans is None else []
            of_responses = msgspec.structs.replace(responses, spans=responses.spans or kept)
        return replace(judge, responses=of_responses)

    def of_label(self, label: str) -> float:
        """From which probability a label is harmful; of no label, from which score a text is."""
        return self.labels.get(label, self.threshold)

    def of_span(self, size: int, label: str) -> float:
        """From which score a span of a size is harmful, by a label or by none."""
        return self.spans.get(size, self.of_label(label))

    def shift(self, own: float) -> float:
        """How far scores of the threshold `own` are moved in log-odds, to be ranked with texts'."""
        return log_odds(self.threshold) - log_odds(own)

    def harmful_from(self, own: float, threshold: float) -> float:
        """Where the threshold `own` stands in a call that takes `threshold` for the head's."""
        return own if threshold == self.threshold else shifted(threshold, -self.shift(own))

    def risk_of(self, score: float, own: float, threshold: float) -> float:
        """Where a score of the threshold `own` ranks among those of texts, in a call that takes
        `threshold` for the head's: at `threshold` or above if it is harmful.
        """
        risk = shifted(score, self.shift(own))
        return max(risk, threshold) if score >= self.harmful_from(own, threshold) else risk


@dataclass(frozen=True)
class Judge:
    """Decides on texts.

    Attributes:
        heads: by name, the primary one first.
        limits: how much of a text may be unknown, and what is done with one of which more is.
    """

    heads: Mapping[str, HeadJudge]
    limits: Limits

    @property
    def primary(self) -> HeadJudge:
        """What decides by the primary head."""
        return next(iter(self.heads.values()))

    @property
    def threshold(self) -> float:
        """The primary head's, of texts without a response."""
        return self.primary.threshold

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The primary head's, of texts without a response."""
        return self.primary.tiers

    @property
    def spans(self) -> Mapping[int, float]:
        """The primary head's."""
        return self.primary.spans

    @property
    def span_sizes(self) -> tuple[int, ...]:
        """The sizes of spans that a head has thresholds for, ascending."""
        return tuple(sorted({size for head in self.heads.values() for size in head.spans}))

    def verdicts(
        self, by_member: Sequence[Sequence[TextScore | SirenError]], call: Call
    ) -> list[ScoreResult | SirenError]:
        """Decide on each text of a call from what each member makes of all of them."""
        return [self._verdict(scored, call) for scored in zip(*by_member, strict=True)]

    def on_head(
        self,
        name: str,
        scored: Sequence[HeadText],
        threshold: float | None,
        unknown: float,
        has_response: bool,
        order: int | None = None,
        *,
        by_spans: bool = False,
    ) -> HeadScore:
        """Decide by one head from what each member makes of a text: the mean of their scores.

        Args:
            threshold: None is the head's own.
            unknown: how much of the text is; a low score then says nothing.
            has_response: whether the text has one, for which the head may have other thresholds.
            order: of heads that have orders, the one that decides; None is the highest, and so is
                one that this head has not.
            by_spans: decide by spans even where other heads alone have thresholds for them.
        """
        head = self.heads[name].of_text(has_response)
        threshold = head.threshold if threshold is None else threshold
        orders = (*map(_mean, zip(*(one.orders for one in scored), strict=True)),)
        score = _mean([one.score for one in scored])
        span = max(scored, key=lambda one: one.score).span
        if order is not None and orders:
            order = min(order, len(orders))
            score = orders[order - 1]
            span = max(scored, key=lambda one: one.orders[order - 1]).order_spans[order - 1]
        categories = {
            label: _mean([one.categories[label] for one in scored])
            for label in scored[0].categories
        }
        by_spans = by_spans or self.counts_spans(head)
        spans, in_spans = _spans(head, scored, threshold) if by_spans else ([], set[str]())
        flagged = tuple(
            label
            for label, own in head.labels.items()
            if label in in_spans or categories[label] >= head.harmful_from(own, threshold)
        )
        if head.labels:  # the score is the likeliest's
            score = max(categories[label] for label in head.labels)
        risk = max(
            (head.risk_of(categories[label], own, threshold) for label, own in head.labels.items()),
            default=score,
        )
        if spans and spans[0][0] > risk:
            risk, riskiest = spans[0]
            spans[0] = risk, replace(riskiest, decides=True)
        is_harmful = risk >= threshold or bool(flagged)
        unsure = not is_harmful and unknown > self.limits.max_unknown
        return HeadScore(
            score=score,
            is_harmful=None if unsure else is_harmful,
            threshold=threshold,
            span=span,
            tier=UNREADABLE if unsure else tier_of(head.tiers, risk),
            risk=risk,
            spans=tuple(span for _, span in spans),
            categories=categories,
            flagged=flagged,
            orders=orders,
            as_response=has_response and head.responses is not None,
        )

    def counts_spans(self, head: HeadJudge) -> bool:
        """Whether a head decides by spans where nobody asks for them: not if others alone do."""
        return bool(head.spans) or not self.span_sizes

    def least_harmful(self, threshold: float | None, has_response: bool) -> float:
        """A score below it is not harmful by the primary head, in a text without spans.

        `on_head` decides on the others. There, the risk of a head without labels is its score.

        Args:
            threshold, has_response: as `on_head`.
        """
        head = self.primary.of_text(has_response)
        if head.labels:
            return 0.0
        return head.threshold if threshold is None else threshold

    def _verdict(
        self, scored: Sequence[TextScore | SirenError], call: Call
    ) -> ScoreResult | SirenError:
        """Decide on one text from what each member makes of it."""
        good = []
        for one in scored:
            if isinstance(one, SirenError):
                return one
            good.append(one)
        unknown = max(one.unknown for one in good)
        has_response = any(one.has_response for one in good)
        heads = self.on_heads(
            [one.heads for one in good],
            threshold=call.threshold,
            unknown=unknown,
            has_response=has_response,
            order=call.order,
            spans_asked=call.limits.spans_asked,
        )
        primary = next(iter(heads.values()))
        if primary.is_harmful is None and self.limits.unreadable == "refuse":
            return UnreadableError(
                f"{unknown:.0%} of the text is unknown to the tokenizer or cut by invisible "
                f"characters, more than {self.limits.max_unknown:.0%}, so its low score says "
                "nothing; to get such texts back undecided, ask for them (unreadable='review', "
                "--unreadable review)"
            )
        return ScoreResult(
            **verdict_of(heads),
            tokens=max(one.tokens for one in good),
            truncated=any(one.truncated for one in good),
            span=primary.span,
            unknown=unknown,
            features=np.concatenate([one.features for one in good]) if call.features else None,
            orders=primary.orders,
            exit=good[0].exit,
            omitted=next((one.omitted for one in good if one.omitted is not None), None),
            unread=good[0].unread,
        )

    def on_heads(
        self,
        members: Sequence[Mapping[str, HeadText]],
        *,
        threshold: float | None,
        unknown: float,
        has_response: bool,
        order: int | None = None,
        spans_asked: bool = False,
    ) -> dict[str, HeadScore]:
        """Decide by each head from what each member makes of a text.

        Args:
            threshold: the primary head's, None is its own; others keep theirs.
            unknown, has_response, order: as `on_head`.
            spans_asked: whether the caller asked for spans, by which the primary head then decides.
        """
        primary = next(iter(self.heads))
        of_members = [list(heads.values()) for heads in members]  # whose names may differ
        return {
            name: self.on_head(
                name,
                [heads[place] for heads in of_members],
                threshold=threshold if name == primary else None,
                unknown=unknown,
                has_response=has_response,
                order=order,
                by_spans=spans_asked and name == primary,
            )
            for place, name in enumerate(self.heads)
        }


def judge_of(
    specs: Mapping[str, HeadSpec],
    decisions: Mapping[str, Decision],
    limits: Limits,
    *,
    threshold: float | None = None,
    tiers: Sequence[Tier] | None = None,
    spans: Sequence[SpanThreshold] | None = None,
    responses: ResponseThresholds | None = None,
) -> Judge:
    """A judge of heads by name, the primary one first.

    Args:
        limits: where they name no sizes of spans, those that a head has thresholds for.
        threshold, tiers, spans: of the primary head, in place of its own, whatever the text.
        responses: of the primary head, of texts with a response, in place of those.
    """
    heads = {name: HeadJudge.of(spec, decisions[name]) for name, spec in specs.items()}
    primary = next(iter(heads))
    heads[primary] = heads[primary].overridden(threshold, tiers, spans, responses)
    judge = Judge(heads, limits)
    if limits.spans is None:
        judge = replace(judge, limits=replace(limits, spans=judge.span_sizes))
    return judge


def _spans(
    head: HeadJudge, scored: Sequence[HeadText], threshold: float
) -> tuple[list[tuple[float, SpanScore]], set[str]]:
    """The risk and the score of the spans of each size that every member has, risks falling;
    and the labels that are harmful in one.

    The score is the mean of the members' highest, the place that of the highest of all; of
    labels it is the one's with the highest risk.
    """
    by_size = [{(span.size, span.category): span for span in one.spans} for one in scored]
    found, flagged = dict[int, tuple[float, SpanScore]](), set[str]()
    for size, category in sorted(set.intersection(*(set(spans) for spans in by_size))):
        of_size = [spans[size, category] for spans in by_size]
        score = _mean([span.score for span in of_size])
        own = head.of_span(size, category)
        harmful_from, risk = head.harmful_from(own, threshold), head.risk_of(score, own, threshold)
        if score >= harmful_from:
            flagged |= {category} & set(head.labels)
        if size not in found or risk > found[size][0]:
            place: Span = max(of_size, key=lambda span: span.score).span
            found[size] = risk, SpanScore(size, score, harmful_from, place)
    return sorted(found.values(), key=lambda item: (-item[0], item[1].tokens)), flagged


def _mean(values: Sequence[float]) -> float:
    """Of the few members of a guard, for which numpy takes many times as long."""
    return reduce(add, values) / len(values)


def _by_size(spans: Sequence[SpanThreshold]) -> dict[int, float]:
    return {span.tokens: span.threshold for span in spans}


def log_odds(probability: float) -> float:
    """Of a probability, which counts as far from 0 and 1 as float64 tells apart from 1."""
    clipped = min(max(probability, _SMALLEST), 1 - _SMALLEST)
    return math.log(clipped) - math.log1p(-clipped)


def shifted(probability: float, shift: float) -> float:
    """A probability whose log-odds are moved by `shift`; as it is where there is no shift."""
    return 1 / (1 + math.exp(-log_odds(probability) - shift)) if shift else probability
