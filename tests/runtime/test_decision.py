"""Decision rules over the scores of a stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren_runtime import AtTier, Hysteresis, InputError, Patience, Schedule
from siren_runtime.streaming.decision import Decisions


def in_force(rule, scores):
    """Where the rule is in force."""
    decisions, found = Decisions([rule]), []
    for position in range(len(scores)):
        decisions.update(scores[: position + 1], context=0)
        found.append(bool(decisions.since(position)))
    return found


def test_a_schedule_applies_the_threshold_of_the_position():
    rule = Schedule(((0, 0.9), (2, 0.5)))
    assert in_force(rule, [0.8, 0.9, 0.5, 0.4]) == [False, True, True, False]
    assert str(rule) == "schedule(0: 0.9, 2: 0.5)"


@given(st.lists(st.floats(0, 1)), st.integers(1, 5), st.integers(0, 4))
def test_patience_counts_hits_among_the_last_n(scores, k, more):
    n = k + more
    expected = [
        sum(s >= 0.5 for s in scores[max(0, i + 1 - n) : i + 1]) >= k for i in range(len(scores))
    ]
    assert in_force(Patience(k, n, 0.5), scores) == expected


def test_hysteresis_holds_between_its_two_thresholds():
    scores = [0.6, 0.8, 0.6, 0.5, 0.49, 0.6]
    assert in_force(Hysteresis(on=0.8, off=0.5), scores) == [False, True, True, True, False, False]


def test_a_decision_names_the_rule_and_the_token_where_it_came_into_force():
    rules = (Patience(2, 3, 0.5), Hysteresis(0.9, 0.2))
    decisions = Decisions(rules)
    decisions.update([0.6, 0.95, 0.6], context=0)
    patience, hysteresis = decisions.since(2)
    assert patience.to_dict() == {"rule": "patience(2 of 3, 0.5)", "token": 1, "score": 0.95}
    assert (hysteresis.rule, hysteresis.token) == ("hysteresis(on 0.9, off 0.2)", 1)


@given(st.lists(st.floats(0, 1), max_size=8), st.data())
def test_scores_that_come_in_pieces_or_are_taken_back_decide_as_at_once(scores, data):
    rules = (Patience(2, 3, 0.5), Hysteresis(0.8, 0.3), Schedule(((0, 0.9), (2, 0.4))))
    context = data.draw(st.integers(0, len(scores)))
    pieced, whole = Decisions(rules), Decisions(rules)
    for _ in range(3):
        pieced.update(
            data.draw(st.lists(st.floats(0, 1), max_size=8)), data.draw(st.integers(0, 3))
        )
    pieced.update(scores, context)
    whole.update(scores, context)
    assert [pieced.since(i) for i in range(9)] == [whole.since(i) for i in range(9)]


def test_what_slides_out_leaves_its_decisions_and_positions_behind():
    scores = [0.1, 0.9, 0.9, 0.2, 0.9]
    slid, whole = Decisions([Patience(2, 3, 0.5)]), Decisions([Patience(2, 3, 0.5)])
    whole.update(scores, context=0)
    slid.update(scores[:3], context=0)
    slid.slide(2)
    slid.update(scores[2:], context=0)
    assert slid.since(2) == whole.since(4)
    assert whole.since(4)[0].token == 2


def test_a_tier_is_in_force_from_its_threshold_on():
    assert in_force(AtTier("block", 0.7), [0.6, 0.7, 0.9, 0.69]) == [False, True, True, False]
    assert str(AtTier("block", 0.7)) == "tier(block, 0.7)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(()), "ascend from 0"),
        (lambda: Schedule(((1, 0.5),)), "ascend from 0"),
        (lambda: Schedule(((0, 0.5), (0, 0.6))), "ascend from 0"),
        (lambda: Schedule(((0, 1.5),)), "0 to 1"),
        (lambda: Schedule(5), "pairs of a position and a threshold"),  # type: ignore[arg-type]
        (lambda: Schedule((0, 1)), "pairs of a position and a threshold"),  # type: ignore[arg-type]
        (lambda: Schedule(((0, 0.5, 1),)), "pairs of a position"),  # type: ignore[arg-type]
        (lambda: Patience(3, 2, 0.5), "1 <= k <= n"),
        (lambda: Patience(0, 2, 0.5), "1 <= k <= n"),
        (lambda: Patience(1, 2, -0.1), "0 to 1"),
        (lambda: Hysteresis(0.5, 0.6), "off <= on"),
        (lambda: Hysteresis(float("nan"), 0.5), "0 to 1"),
        (lambda: Patience(1, 2, "0.5"), "must be a number"),
        (lambda: AtTier("block", 2), "0 to 1"),
    ],
)
def test_rules_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_tokens_that_were_scored_together_decide_at_their_last():
    decisions = Decisions((Schedule(((0, 0.9), (2, 0.5))), Patience(2, 2, 0.5)))
    decisions.update([0.1, 0.6, 0.6, 0.6], context=1, together=1)
    assert {d.rule[:8]: d.token for d in decisions.since(1)} == {"schedule": 2, "patience": 2}
    decisions.update([0.1, 0.6, 0.6, 0.6, 0.7, 0.7], context=1, together=4)
    assert {d.token for d in decisions.since(4)} == {2}  # in force since then
