"""A call ends at its deadline or with its caller, between engine runs and while it is tokenized."""

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from clock import Clock
from siren_runtime import BackendError, Guard, InputError, InterruptedCall
from siren_runtime.text.deadline import Deadline
from tiny_bundle import MAX_LENGTH, make_alarm

ROOM = MAX_LENGTH - 1


@pytest.fixture(scope="module")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 40)


def test_a_deadline_and_a_cancelled_caller_end_a_call_between_runs(alarm: Path) -> None:
    guard = Guard.load(alarm)
    with pytest.raises(InterruptedCall, match=r"deadline of 1e-09 s passed while the texts were"):
        guard.score("a", deadline=1e-9)
    gone = threading.Event()
    run, runs = guard.scorers[0].backend.run, []

    def slow(*arrays: Any) -> Any:
        runs.append(len(arrays[0]))
        gone.set()
        return run(*arrays)

    guard.scorers[0].backend.run = slow  # type: ignore[method-assign]
    with pytest.raises(InterruptedCall, match="cancelled after 1 of 4"):
        guard.score_batch(["a", "bb", "ccc", "dddd"], token_budget=1, cancel=gone)
    assert len(runs) == 1
    for wrong in (0, -1, "soon", float("inf")):
        with pytest.raises(InputError, match="deadline"):
            guard.score("a", deadline=wrong)
    with pytest.raises(InputError, match="cancel"):
        guard.score("a", cancel=True)  # type: ignore[arg-type]


def test_a_call_ends_with_whoever_cancels_it_first() -> None:
    for number in range(2):
        events = threading.Event(), threading.Event()
        alone = Deadline(None, events[0])
        both = alone.or_by(events[1])
        both.check("before")
        events[number].set()
        with pytest.raises(InterruptedCall, match="cancelled behind"):
            both.check("behind")
    alone.check("where the second one was set alone")
    with pytest.raises(InterruptedCall, match="deadline of 1e-09 s passed behind"):
        Deadline(1e-9, None).or_by(threading.Event()).check("behind")


def test_a_text_that_would_be_tokenized_behind_the_deadline_is_not(
    alarm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard.load(alarm, max_tokens_per_text=1 << 20)
    text = "a" * 600_000
    clock = Clock(monkeypatch)
    with pytest.raises(InterruptedCall, match="200 s would have passed while the text was token"):
        guard.score(text, deadline=200)
    assert 60 < clock.seconds <= 200
    with pytest.warns(UserWarning, match="re-encodes") as warned:
        stream = guard.stream()
    assert warned[0].filename == __file__
    clock.seconds = clock.characters = 0
    with pytest.raises(InterruptedCall, match="200 s would have passed while the text was token"):
        stream.feed(text, deadline=200)
    assert clock.seconds <= 200


def test_a_list_that_is_tokenized_too_long_is_not_tokenized_to_its_end(
    alarm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard.load(alarm)
    clock = Clock(monkeypatch)
    with pytest.raises(InterruptedCall, match="100 s passed while the texts were tokenized"):
        guard.score_batch(["a" * 16_000] * 40, deadline=100)
    assert 100 <= clock.seconds < 100 + 17  # a part is 16,384 characters at most
    results = guard.score_each(["a" * 16_000] * 9, long_text="truncate")
    assert [result.tokens for result in results] == [16_001] * 9


def test_a_deadline_is_looked_at_before_each_window_is_cut(
    alarm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, looks = Guard.load(alarm), itertools.count()
    monkeypatch.setattr("siren_runtime.text.deadline.monotonic", lambda: float(next(looks)))
    with pytest.raises(InterruptedCall, match="20 s passed while the text was cut into windows"):
        guard.score("a" * 1000, deadline=20)  # which has more windows than that


def test_a_deadline_is_looked_at_while_texts_are_cleaned(alarm: Path) -> None:
    guard, gone, read = Guard.load(alarm), threading.Event(), []

    def texts() -> Any:
        for text in "abc":
            read.append(text)
            gone.set()
            yield text

    with pytest.raises(InterruptedCall, match="cancelled while the texts were read"):
        guard.score_batch(texts(), cancel=gone)
    assert read == ["a"]


def test_windows_and_spans_of_one_text_are_runs_of_their_own_to_a_deadline(alarm: Path) -> None:
    for settings_ in ({"token_budget": 1}, {"token_budget": 1, "spans": [4]}):
        guard, gone, runs = Guard.load(alarm), threading.Event(), []
        run = guard.scorers[0].backend.run

        def counted(*arrays: Any, run: Any = run, runs: Any = runs, gone: Any = gone) -> Any:
            runs.append(len(arrays[0]))
            gone.set()
            return run(*arrays)

        guard.scorers[0].backend.run = counted  # type: ignore[method-assign]
        text = "a" * (2 * ROOM if "spans" not in settings_ else ROOM)
        with pytest.raises(InterruptedCall, match="cancelled after 1 of"):
            guard.score_batch([text], cancel=gone, **settings_)
        assert runs == [1]


def test_a_batch_that_failed_is_not_run_one_by_one_for_a_caller_that_has_gone(alarm: Path) -> None:
    guard, gone, runs = Guard.load(alarm), threading.Event(), []

    def failing(*arrays: Any) -> Any:
        runs.append(len(arrays[0]))
        gone.set()
        raise BackendError("no")

    guard.scorers[0].backend.run = failing  # type: ignore[method-assign]
    with pytest.raises(InterruptedCall, match="cancelled after 0 of 1 engine runs"):
        guard.score_batch(["a", "b", "c"], cancel=gone)
    assert runs == [3]


def test_a_feed_that_is_ended_leaves_the_stream_without_a_verdict(alarm: Path) -> None:
    with pytest.warns(UserWarning, match="re-encodes") as warned:
        streams = Guard.load(alarm).streams()
    assert warned[0].filename == __file__
    first, second = streams.open(), streams.open()
    assert [
        type(result) for result in streams.feed([(first, "a"), (second, "b")], deadline=1e-9)
    ] == [InterruptedCall] * 2
    with pytest.raises(BackendError, match="has no verdict"):
        first.feed("a")
    first.reset()
    assert first.feed("a", deadline=100).tokens == 2
    gone = threading.Event()
    gone.set()
    with pytest.raises(InterruptedCall, match="cancelled before the piece was read"):
        first.feed("a", cancel=gone)
