"""Streams with exits under decision rules: an exit decides where it does at every token."""

import numpy as np
import pytest

from calibrated import write_calibration
from exits import export_with_exits, set_bounds
from guards import load_guard
from served import running
from siren_command import rows, siren
from siren_runtime import Hysteresis, Patience, Schedule
from siren_runtime.bundle.thresholds import Tier
from siren_runtime.streaming import cascade as reading
from siren_runtime.streaming.decision import Decisions
from streaming import BOUND, cut
from texts import CORPUS

TEXT = "The quick brown fox jumps over the lazy dog and on"
ALWAYS = [(0.999, None), (None, None)]  # behind the first exit


@pytest.fixture(scope="module")
def with_tiers(tmp_path_factory, backbone_folder):
    """A function: bounds -> a bundle with them and with tiers."""
    folder = tmp_path_factory.mktemp("rules-and-exits")
    bundle = export_with_exits(folder, backbone_folder("qwen3"))
    write_calibration(bundle, tiers=[Tier("block", 0.6), Tier("review", 0.4)])

    def bound(bounds):
        set_bounds(bundle, bounds)
        return bundle

    return bound


def check(result, expected):
    """That a result is the whole guard's, or on a side that bounds of an exit are on."""
    assert expected.exit is None
    assert result.tokens == expected.tokens
    if result.exit is None:
        assert result.score == pytest.approx(expected.score, abs=BOUND)
    else:
        assert result.tier == ("block" if result.is_harmful else None)


@pytest.mark.parametrize("most", [5, reading.MOST_WAITING])
def test_under_rules_an_exit_decides_where_it_decides_at_every_token(with_tiers, monkeypatch, most):
    monkeypatch.setattr(reading, "MOST_WAITING", most)
    bundle = with_tiers([(0.35, 0.65), (0.45, 0.55)])
    guard = load_guard(bundle, streaming=True)
    whole = load_guard(bundle, streaming=True, exits=False)
    others = [Patience(2, 3, 0.5), Hysteresis(0.6, 0.4), Schedule(((0, 0.6), (9, 0.4)))]
    rules = [*guard.tiers, *others]
    rng, seen = np.random.default_rng(5), set()
    for text in CORPUS[:12]:
        with guard.stream(rules=rules) as stream, whole.stream(rules=rules) as other:
            for piece in cut(text, rng):
                result, expected = stream.feed(piece), other.feed(piece)
                state = stream.session.tracks[0].state
                check(result, expected)
                assert state.judged == len(state.ids)
                for number, score in enumerate(state.scores):  # the whole guard's, or on a side
                    near = abs(score - other.session.tracks[0].state.scores[number]) < BOUND
                    assert near or score < 0.4 or score >= 0.6
                folded = Decisions(rules)
                folded.update(state.scores, 0)
                assert set(result.decisions) <= set(folded.since(0))
                seen.add(result.exit)
            deeper = [s.score for s in stream.scores]  # all of it
            assert deeper == pytest.approx([s.score for s in other.scores], abs=BOUND)
            found, expected = stream.feed("").decisions, other.feed("").decisions
            assert [(d.rule, d.token) for d in found] == [(d.rule, d.token) for d in expected]
    assert seen == {1, 3, None}


def test_a_piece_is_decided_by_an_exit_where_each_of_its_tokens_is(with_tiers):
    guard = load_guard(with_tiers([(0.48, 0.52), (None, None)]), streaming=True)
    rng, seen = np.random.default_rng(1), set()
    for _ in range(40):
        ids = rng.integers(5, 50, 4).tolist()
        with guard.stream(rules=guard.tiers) as one_by_one, guard.stream(rules=guard.tiers) as all_:
            exits = [one_by_one.feed_tokens([token]).exit for token in ids]
            at_once = all_.feed_tokens(ids).exit
        if any(exits) and not all(exits):
            assert at_once is None
            seen.add("mixed")
        elif all(exits):
            assert at_once == 1
            seen.add("clear")
    assert seen == {"mixed", "clear"}


def test_the_command_and_the_server_which_set_tiers_as_rules_leave_too(with_tiers):
    bundle = with_tiers(ALWAYS)
    ran = siren("stream", bundle, "--threads", 1, input=TEXT)
    assert rows(ran)[-1]["exit"] == 1
    with running({"quick": str(bundle)}) as server:
        opened = server.client.post("/v1/streams", json={}).json()
        answer = server.client.post(f"/v1/streams/{opened['id']}", json={"text": TEXT})
        assert answer.json()["exit"] == 1
