"""Other streams are read between two engine runs of those that a bundle without a streaming graph
reads anew."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from siren_runtime import Guard
from siren_runtime.streaming.handles import Streams
from siren_runtime.text.deadline import NO_DEADLINE
from tiny_bundle import HARM, make_alarm

ROUNDING = 1e-6


@pytest.fixture(scope="module")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 8)


def recorded(guard: Guard, events: list[str], token_budget: int | None = None) -> Streams:
    """The guard's streams, whose engine runs are noted."""
    for scorer in guard.scorers:
        backend: Any = scorer.backend
        run = backend.run

        def noted(*arrays: Any, run: Any = run) -> Any:
            events.append("run")
            return run(*arrays)

        backend.run = noted
        if token_budget is not None:
            backend.token_budget = token_budget
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which says that they are read anew
        return guard.streams()


def read(streams: Streams, texts: list[str], events: list[str]) -> list[Any]:
    """Read texts by streams of their own, and between two runs another that comes and goes."""
    opened = [streams.open() for _ in texts]

    def between() -> None:
        noted = len(events)
        with streams.open() as other:
            assert other.feed(HARM).tokens == 2
        events[noted:] = ["between"]

    pieces = zip(opened, texts, strict=True)
    return streams.read([(*piece, NO_DEADLINE, True) for piece in pieces], between)


def test_others_are_read_between_two_batches(alarm: Path) -> None:
    events: list[str] = []
    guard, texts = Guard.load(alarm), ["a", "aa" + HARM, HARM * 7]
    expected = [guard.score(text).score for text in texts]
    results = read(recorded(guard, events, token_budget=1), texts, events)
    assert events == ["run", "between", "run", "between", "run"]
    assert [result.score for result in results] == pytest.approx(expected, abs=ROUNDING)


def test_others_are_read_before_the_spans_of_the_next_stream(alarm: Path) -> None:
    events: list[str] = []
    guard, texts = Guard.load(alarm, spans=[4]), ["a" * 9, "aaa" + HARM * 6]
    expected = [guard.score(text) for text in texts]
    results = read(recorded(guard, events), texts, events)
    assert events == ["run", "run", "between", "run"]
    for result, one in zip(results, expected, strict=True):
        assert result.risk == pytest.approx(one.risk, abs=ROUNDING)


def test_others_are_read_between_two_members(alarm: Path, tmp_path: Path) -> None:
    events: list[str] = []
    guard = Guard.load([alarm, make_alarm(tmp_path / "other", 4)])
    expected = guard.score("aa" + HARM).score
    (result,) = read(recorded(guard, events), ["aa" + HARM], events)
    assert events == ["run", "between", "run"]
    assert result.score == pytest.approx(expected, abs=ROUNDING)
