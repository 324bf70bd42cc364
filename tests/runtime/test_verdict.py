"""From the numbers of heads to verdicts, at the edges of thresholds and orders."""

import random

import pytest

from siren_runtime.backends.readout import HeadText, HighestSpan
from siren_runtime.backends.verdicts import deciding
from siren_runtime.bundle.thresholds import Tier
from siren_runtime.scoring.verdict import HeadJudge, Judge
from siren_runtime.text.reading import Limits


def test_a_span_at_its_threshold_is_harmful_and_one_below_is_not_so_by_it() -> None:
    rng = random.Random(0)
    for _ in range(300):
        threshold, own = rng.uniform(0.01, 0.99), rng.uniform(0.01, 0.999)
        head = HeadJudge(threshold, (Tier("review", threshold),), {8: own}, {})
        judge = Judge({"harm": head}, Limits())

        def verdict(span: float, judge: Judge = judge) -> tuple[bool | None, str | None, bool]:
            text = HeadText(0.0, None, {}, (HighestSpan(8, span, (0, 1)),))
            found = judge.on_head("harm", [text], None, 0.0, False)
            return found.is_harmful, found.tier, span >= found.spans[0].threshold

        assert verdict(own) == (True, "review", True)
        assert verdict(own - 1e-6) == (False, None, False)


@pytest.mark.parametrize(
    ("order", "scores"), [(None, [0.2, 0.9]), (3, [0.2, 0.9]), (2, [0.2, 0.8])]
)
def test_a_head_with_fewer_orders_decides_by_its_highest(
    order: int | None, scores: list[float]
) -> None:
    heads = {name: HeadJudge(0.5, (), {}, {}) for name in ("two", "three")}
    texts = {
        "two": HeadText(0.2, None, {}, (), (0.1, 0.2), (None, None)),
        "three": HeadText(0.9, None, {}, (), (0.7, 0.8, 0.9), (None, None, None)),
    }
    found = Judge(heads, Limits()).on_heads(
        [texts], threshold=None, unknown=0.0, has_response=False, order=order
    )
    assert [head.score for head in found.values()] == scores


LABELS = {"hate": 0.2, "fraud": 0.6}


def of_labels(hate: float, fraud: float, /, **spans: float) -> HeadText:
    found = tuple(HighestSpan(32, score, (0, 9), label) for label, score in spans.items())
    return HeadText(max(hate, fraud), None, {"hate": hate, "fraud": fraud}, found)


def test_a_label_in_a_span_is_held_against_its_own_threshold() -> None:
    judge = Judge({"kinds": HeadJudge(0.5, (), {}, LABELS)}, Limits())

    def verdict(**spans: float) -> tuple[bool | None, tuple[str, ...], float, float]:
        found = judge.on_head("kinds", [of_labels(0.1, 0.1, **spans)], None, 0.0, False)
        return found.is_harmful, found.flagged, found.spans[0].score, found.spans[0].threshold

    assert verdict(hate=0.25, fraud=0.3) == (True, ("hate",), 0.25, 0.2)
    assert verdict(hate=0.15, fraud=0.55) == (False, (), 0.55, 0.6)
    assert verdict(hate=0.15, fraud=0.65) == (True, ("fraud",), 0.65, 0.6)


def test_the_score_of_an_ensemble_of_labels_is_that_of_the_likeliest() -> None:
    judge = Judge({"kinds": HeadJudge(0.5, (), {}, dict.fromkeys(LABELS, 0.5))}, Limits())
    members = [of_labels(0.75, 0.125), of_labels(0.125, 0.625)]
    found = judge.on_head("kinds", members, None, 0.0, False)
    assert (found.score, found.is_harmful, found.risk) == (0.4375, False, 0.4375)


def test_a_threshold_in_place_of_the_heads_moves_its_labels() -> None:
    head = HeadJudge(0.5, (), {}, LABELS)
    text, low = of_labels(0.1, 0.1), 0.02
    once = Judge({"kinds": head}, Limits()).on_head("kinds", [text], low, 0.0, False)
    judge = Judge({"kinds": head.overridden(low, None, None, None)}, Limits())
    always = judge.on_head("kinds", [text], None, 0.0, False)
    assert once.is_harmful
    assert (always.is_harmful, always.flagged) == (once.is_harmful, once.flagged)


def test_spans_that_are_asked_for_decide_though_another_head_has_thresholds_for_them() -> None:
    heads = {"harm": HeadJudge(0.5, (), {}, {}), "other": HeadJudge(0.5, (), {32: 0.9}, {})}
    text = HeadText(0.1, None, {}, (HighestSpan(32, 0.7, (0, 9)),))
    both = {"harm": text, "other": text}
    for asked, first in ((False, False), (True, True)):
        found = Judge(heads, Limits()).on_heads(
            [both], threshold=None, unknown=0.0, has_response=False, spans_asked=asked
        )
        assert [head.is_harmful for head in found.values()] == [first, False]


def test_a_span_decides_only_where_it_is_riskier_than_the_whole_text() -> None:
    judge = Judge({"kinds": HeadJudge(0.5, (Tier("block", 0.5),), {}, LABELS)}, Limits())

    def found(hate: float, fraud: float, /, **spans: float) -> tuple[bool, bool, str]:
        head = judge.on_head("kinds", [of_labels(hate, fraud, **spans)], None, 0.0, False)
        assert deciding(head.spans) is (head.spans[0] if head.spans[0].decides else None)
        return head.spans[0].decides, head.risk > head.score, head.reason

    # The whole text's label is riskier than its probability, as it holds from 0.2 on.
    by_label = "score 0.3000 of threshold 0.5, flagged hate, tier block"
    assert found(0.3, 0.1, hate=0.25) == (False, True, by_label)
    # And one that holds from 0.6 on is less risky, also in a span that decides.
    by_span = "score 0.6500 of threshold 0.6 in 32 tokens of it, flagged fraud, tier block"
    assert found(0.01, 0.6 - 1e-6, fraud=0.65)[::2] == (True, by_span)
    assert found(0.01, 0.58, fraud=0.59)[:2] == (True, False)


def test_the_riskiest_of_several_spans_is_the_one_that_decides() -> None:
    judge = Judge({"harm": HeadJudge(0.5, (), {16: 0.9, 32: 0.6}, {})}, Limits())
    spans = HighestSpan(16, 0.89, (0, 4)), HighestSpan(32, 0.7, (4, 9))
    head = judge.on_head("harm", [HeadText(0.4, None, {}, spans)], None, 0.0, False)
    assert [(span.tokens, span.decides) for span in head.spans] == [(32, True), (16, False)]
    assert head.reason == "score 0.7000 of threshold 0.6 in 32 tokens of it"
    plain = judge.on_head("harm", [HeadText(0.62, None, {}, spans)], None, 0.0, False)
    assert [span.decides for span in plain.spans] == [False, False]
    assert plain.reason == "score 0.6200 of threshold 0.5"
