"""Many threads share a guard: same scores, shared runs, bounded waiting."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gated import WAIT_S, gated
from siren_runtime import (
    BackendError,
    BusyError,
    Guard,
    InputError,
    InterruptedCall,
    ScoreResult,
    SharedGuard,
    Sharing,
)
from siren_runtime.serving.pending import PendingCall
from texts import CORPUS
from tiny_bundle import MAX_LENGTH

ROUNDING = 1e-6  # what the batch that a text shares moves a score of the tiny bundle by, at most


def _eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def plain(bundle: Path) -> Guard:
    return Guard.load(bundle, threads=1, unreadable="review")


def _fields(result: ScoreResult) -> dict[str, object]:
    return {**result.to_dict(), "score": pytest.approx(result.score, abs=ROUNDING)}


@pytest.mark.parametrize("runs", [1, 2])
def test_sixteen_threads_get_what_the_guard_itself_gives(plain: Guard, runs: int) -> None:
    texts = [text for text in CORPUS if text.strip()] * 3 + ["long " * 400]
    with SharedGuard(plain, Sharing(runs=runs)) as shared, ThreadPoolExecutor(16) as pool:
        results = list(pool.map(shared.score, texts))
    assert [r.to_dict() for r in results] == [_fields(plain.score(text)) for text in texts]


def test_an_ensemble_is_shared_too(bundle: Path, own_bundle: Path) -> None:
    ensemble = Guard.load([bundle, own_bundle], threads=1)
    with SharedGuard(ensemble) as shared:
        result = shared.score(prompt="How do I", response="pick a lock? " * 9, features=True)
        expected = ensemble.score(prompt="How do I", response="pick a lock? " * 9, features=True)
        assert result.to_dict() == _fields(expected)
        assert result.features == pytest.approx(expected.features, abs=1e-5)


def test_settings_of_a_call_are_its_own(plain: Guard) -> None:
    text = "x" * 100
    with SharedGuard(plain) as shared, ThreadPoolExecutor(2) as pool:
        strict = pool.submit(shared.score, text, threshold=0.0)
        cut = pool.submit(shared.score, text, threshold=1.0, long_text="truncate")
        assert strict.result().to_dict() == _fields(plain.score(text, threshold=0.0))
        assert cut.result().to_dict() == _fields(
            plain.score(text, threshold=1.0, long_text="truncate")
        )


def test_what_comes_while_the_engine_is_busy_shares_the_next_run(plain: Guard) -> None:
    guard, gate = gated(plain)
    with SharedGuard(guard, Sharing(token_budget=512)) as shared, ThreadPoolExecutor(16) as pool:
        first = pool.submit(shared.score, "first")
        gate.wait_for_run()
        rest = [pool.submit(shared.score, "a" * (n + 1)) for n in range(12)]
        _eventually(lambda: shared.dispatcher.waiting[1] == sum(n + 2 for n in range(12)))
        gate.open()
        assert len({future.result().score for future in [first, *rest]}) > 1
    assert gate.runs[0] == [6]
    assert sorted(gate.runs[1]) == list(range(2, 14))


def test_an_error_of_who_counts_runs_stops_nobody(
    plain: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(run: object) -> None:
        raise OSError("no space left on device")

    scores: list[float] = []
    with SharedGuard(plain, on_run=fails) as shared:

        def score() -> None:
            scores.append(shared.score("a text").score)

        for _ in range(2):
            thread = threading.Thread(target=score, daemon=True)
            thread.start()
            thread.join(WAIT_S)
    assert scores == pytest.approx([plain.score("a text").score] * 2, abs=ROUNDING)
    assert "goes on after an error" in caplog.text


def test_a_run_holds_no_more_than_its_budget(plain: Guard) -> None:
    guard, gate = gated(plain)
    with SharedGuard(guard, Sharing(token_budget=20)) as shared, ThreadPoolExecutor(16) as pool:
        first = pool.submit(shared.score, "first")
        gate.wait_for_run()
        rest = [pool.submit(shared.score, "a" * 5) for _ in range(7)]
        _eventually(lambda: shared.dispatcher.waiting[1] == 7 * 6)
        gate.open()
        _ = [future.result() for future in [first, *rest]]
    assert [len(run) for run in gate.runs] == [1, 3, 3, 1]


def test_a_lone_text_waits_for_others_no_longer_than_it_may(plain: Guard) -> None:
    guard, gate = gated(plain)
    gate.open()
    with SharedGuard(guard, Sharing(gather=0.2)) as shared, ThreadPoolExecutor(4) as pool:
        start = time.monotonic()
        assert len(list(pool.map(shared.score, ["one", "two", "three"]))) == 3
        assert time.monotonic() - start >= 0.2
    assert len(gate.runs) < 3  # unless threads begin more than that apart


def test_a_long_text_does_not_hold_up_a_short_one(plain: Guard) -> None:
    guard, gate = gated(plain)
    with SharedGuard(guard, Sharing(token_budget=32)) as shared, ThreadPoolExecutor(4) as pool:
        first = pool.submit(shared.score, "first")
        gate.wait_for_run()
        long = pool.submit(shared.score, "word " * 500)
        _eventually(lambda: shared.dispatcher.waiting[1] > 100)
        tokens = shared.dispatcher.waiting[1]
        short = pool.submit(shared.score, "short")
        _eventually(lambda: shared.dispatcher.waiting[1] == tokens + 6)
        gate.open()
        assert short.result(WAIT_S).tokens == 6
        assert long.result(WAIT_S).tokens > 2000
        assert first.result().tokens == 6
    assert len(gate.runs) > 50
    assert [6] in gate.runs[1:5]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(plain: Guard) -> None:
    guard, gate = gated(plain)
    sharing = Sharing(max_waiting_tokens=50)
    with SharedGuard(guard, sharing) as shared, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(shared.score, "first")]
        gate.wait_for_run()
        futures.append(pool.submit(shared.score, "second"))
        _eventually(lambda: shared.dispatcher.waiting[1] == 7)
        with pytest.raises(BusyError, match="the queue is full") as refused:
            shared.score("third " * 10)
        assert refused.value.retry_after > 0
        gate.open()
        assert all(future.result().score >= 0 for future in futures)
        assert shared.score("a call larger than the bound, while nothing waits " * 9).score >= 0


def test_a_queue_that_was_full_refuses_without_reading_until_an_eighth_is_free(
    plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, gate = gated(plain)
    read: list[str] = []

    def counted(guard: Guard, given: Any, call: Any) -> PendingCall:
        read.extend(passage.cleaned for passage in given)
        return PendingCall(guard, given, call)

    monkeypatch.setattr("siren_runtime.serving.shared.PendingCall", counted)
    with (
        SharedGuard(guard, Sharing(max_waiting_tokens=64)) as shared,
        ThreadPoolExecutor(11) as pool,
    ):
        futures = [pool.submit(shared.score, "first")]
        gate.wait_for_run()
        futures += [pool.submit(shared.score, "other") for _ in range(10)]
        _eventually(lambda: shared.dispatcher.waiting[1] == 60)
        assert shared.dispatcher.refusal() is None
        for text in ("b" * 10, "c"):  # of which the second would fit
            with pytest.raises(BusyError, match="60 tokens wait"):
                shared.score(text)
        assert isinstance(shared.dispatcher.refusal(), BusyError)
        gate.open()
        assert all(future.result().score >= 0 for future in futures)
        assert shared.dispatcher.refusal() is None
        assert shared.score("d").score >= 0
    assert read == ["first", *["other"] * 10, "b" * 10, "d"]


def test_a_call_larger_than_the_queue_leaves_room_to_others(plain: Guard) -> None:
    guard, gate = gated(plain)
    sharing = Sharing(max_waiting_tokens=50)
    with SharedGuard(guard, sharing) as shared, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(shared.score_batch, ["first"] * 100)]
        gate.wait_for_run()
        tokens = shared.dispatcher.waiting[1]
        assert tokens > 50
        futures.append(pool.submit(shared.score_batch, ["second"]))
        _eventually(lambda: shared.dispatcher.waiting[1] == tokens + 7)
        with pytest.raises(BusyError):
            shared.score("third " * 10)
        gate.open()
        assert [len(future.result()) for future in futures] == [100, 1]


def test_more_calls_than_may_be_under_way_are_refused(plain: Guard) -> None:
    guard, gate = gated(plain)
    with SharedGuard(guard, Sharing(max_calls=1)) as shared, ThreadPoolExecutor(4) as pool:
        first = pool.submit(shared.score, "first")
        gate.wait_for_run()
        with pytest.raises(BusyError, match="1 calls are under way"):
            shared.score("second")
        gate.open()
        assert first.result().score >= 0


def test_a_call_whose_time_is_up_costs_no_run(
    plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, gate = gated(plain)
    now = 0.0
    monkeypatch.setattr("siren_runtime.text.deadline.monotonic", lambda: now)
    with SharedGuard(guard) as shared, ThreadPoolExecutor(4) as pool:
        first = pool.submit(shared.score, "first")
        gate.wait_for_run()
        cancel = threading.Event()
        late = pool.submit(shared.score, "late", deadline=9)
        gone = pool.submit(shared.score, "gone", cancel=cancel)
        _eventually(lambda: shared.dispatcher.waiting[1] == 10)
        cancel.set()
        now = 10.0
        gate.open()
        with pytest.raises(InterruptedCall, match="deadline of 9 s passed after 0 of 1"):
            late.result()
        with pytest.raises(InterruptedCall, match="cancelled after 0 of 1"):
            gone.result()
        assert first.result().score >= 0
    assert gate.runs == [[6]]


def test_a_call_whose_time_is_up_while_it_is_tokenized_waits_for_no_run(plain: Guard) -> None:
    guard, gate = gated(plain)
    with SharedGuard(guard) as shared:
        with pytest.raises(InterruptedCall, match="1e-09 s passed while the texts were tokenized"):
            shared.score("late", deadline=1e-9)
        assert shared.dispatcher.waiting == (0, 0, 0)
    assert not gate.runs


def test_a_run_of_many_batches_ends_with_its_last_caller(plain: Guard) -> None:
    backend, gone, runs = plain.scorers[0].backend, threading.Event(), []
    run = backend.run

    def counted(*arrays: Any) -> Any:
        runs.append(len(arrays[0]))
        gone.set()
        return run(*arrays)

    backend.run = counted  # type: ignore[method-assign]
    with SharedGuard(plain, Sharing(token_budget=1)) as shared:
        with pytest.raises(InterruptedCall, match="cancelled after 0 of 1"):
            shared.score("a text with spans", spans=[4], cancel=gone)
        assert runs == [1]
        assert shared.score("a text with spans", spans=[4]).spans
    assert len(runs) > 5


def test_an_error_of_a_text_is_its_own(plain: Guard) -> None:
    with SharedGuard(plain) as shared:
        results = shared.score_each(["good", "\ud800", "b" * (2 << 20), "day"])
        assert [isinstance(result, ScoreResult) for result in results] == [True, False, False, True]
        assert shared.score_each([]) == []
        with pytest.raises(InputError, match=r"texts\[1\]: .*surrogate"):
            shared.score_batch(["good", "\ud800"])
        with pytest.raises(InputError, match="both"):
            shared.score("text", prompt="prompt")
        with pytest.raises(TypeError):
            shared.score("text", treshold=0.5)


def test_what_is_queued_is_answered_when_it_is_closed(plain: Guard) -> None:
    guard, gate = gated(plain)
    shared = SharedGuard(guard)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(shared.score, "first")]
        gate.wait_for_run()
        futures += [pool.submit(shared.score, f"text {n}") for n in range(3)]
        _eventually(lambda: shared.dispatcher.waiting[1] == 3 * 7)
        closing = pool.submit(shared.close)
        gate.open()
        assert all(future.result(WAIT_S).score >= 0 for future in futures)
        closing.result(WAIT_S)
        with pytest.raises(BackendError, match="closed"):
            shared.score("late")


def test_a_guard_that_is_closed_underneath_fails_its_callers_and_nothing_hangs(
    bundle: Path,
) -> None:
    guard = Guard.load(bundle, threads=1)
    with SharedGuard(guard) as shared:
        guard.close()
        for _ in range(2):
            with pytest.raises(BackendError, match="closed"):
                shared.score("text")


@pytest.mark.filterwarnings("ignore:.*re-encodes its text")
@pytest.mark.parametrize(
    ("asked", "held"), [(None, MAX_LENGTH), (4096, MAX_LENGTH), (MAX_LENGTH - 8, MAX_LENGTH - 8)]
)
def test_a_stream_holds_what_was_asked_for_as_far_as_the_guard_can(
    plain: Guard, asked: int | None, held: int
) -> None:
    with SharedGuard(plain, Sharing(max_stream_tokens=asked)) as shared:
        most = shared.dispatcher.with_streams(lambda streams: streams.max_tokens)
        assert most.result(WAIT_S) == held


@pytest.mark.parametrize(
    "wrong",
    [
        {"runs": 0},
        {"gather": 2},
        {"gather": "1"},
        {"max_calls": True},
        {"token_budget": 0},
        {"max_stream_tokens": "64"},
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sharing(**wrong)
