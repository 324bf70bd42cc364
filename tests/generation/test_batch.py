"""Several prompts at once: each row is what it is alone, and stops by itself."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

from generators import FAMILIES, need_genai
from siren_runtime import BackendError, Generation, GuardedGenerator, InputError, Sampling
from siren_runtime.generation.engine import Batch, Engine, RowRun, Run

need_genai()
PROMPTS = ("The history of bread begins", "No", "How can I sleep better? Name three ways.\n1.")
GREEDY = Sampling(temperature=0)
TOKENS = 12


def _alone(guarded: GuardedGenerator, **options: object) -> list[Generation]:
    settings = {"max_tokens": TOKENS, "sampling": GREEDY, "threshold": 1.0, **options}
    return [guarded.generate(prompt, **settings) for prompt in PROMPTS]  # type: ignore[arg-type]


def _together(guarded: GuardedGenerator, **options: object) -> list[Generation]:
    settings = {"max_tokens": TOKENS, "sampling": GREEDY, "threshold": 1.0, **options}
    return guarded.generate_batch(PROMPTS, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_tokens_and_the_states_that_it_has_alone(
    family: str, generator: Callable[..., Path]
) -> None:
    engine = Engine(generator(family), threads=1)
    prompts = [engine.encode(prompt) for prompt in PROMPTS]
    rows = engine.run_rows(prompts, TOKENS, GREEDY.search(), ["logits"])
    assert isinstance(rows[0], Run if engine.model.window else RowRun)
    for prompt, row in zip(prompts, rows, strict=True):
        run = engine.run(len(prompt) + TOKENS, GREEDY.search())
        run.append(prompt)
        row.append(prompt)
        np.testing.assert_allclose(row.output("logits"), run.output("logits"), atol=2e-3)
        for number in range(TOKENS):
            token = run.step()
            assert row.step() == token
            if token in engine.ends:
                break
            if number == 0:  # chosen by the prompt's own pass
                continue
            np.testing.assert_allclose(row.output("logits"), run.output("logits"), atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_ends_in_the_padding_runs_by_itself(
    family: str, generator: Callable[..., Path]
) -> None:
    engine = Engine(generator(family), threads=1)
    first, padded, last = [engine.encode(prompt) for prompt in PROMPTS]
    padded = [*padded, engine.model.padding]
    runs = engine.run_rows([first, padded, last], TOKENS, GREEDY.search(), ["logits"])
    assert isinstance(runs[1], Run)
    alone = engine.run(len(padded) + TOKENS, GREEDY.search())
    for run in (runs[1], alone):
        run.append(padded)
    np.testing.assert_allclose(runs[1].output("logits"), alone.output("logits"), atol=1e-4)
    if not engine.model.window:
        assert [type(run) for run in runs] == [RowRun, Run, RowRun]


def test_padding_at_a_prompts_end_counts_alone_and_among_others(guarded: GuardedGenerator) -> None:
    """The engine would choose what follows by the last token that is no padding."""
    engine, padded = guarded.engine, "The history of bread<|eot_id|>"
    tokens = engine.encode(padded)
    assert tokens[-1] == engine.model.padding
    one_by_one = engine.run(len(tokens) + TOKENS, GREEDY.search())
    for token in tokens:
        one_by_one.append([token])
    expected = []
    while len(expected) < TOKENS and (token := one_by_one.step()) not in engine.ends:
        expected.append(token)
    options = {"chat": False, "max_tokens": TOKENS, "sampling": GREEDY, "threshold": 1.0}
    (alone,) = guarded.generate_batch([padded], **options)  # type: ignore[arg-type]
    _, among, _ = guarded.generate_batch(["No", padded, "Bread"], **options)  # type: ignore[arg-type]
    for found in (alone, among):
        assert found.prompt.tokens == len(tokens)
        assert found.prompt.score == pytest.approx(alone.prompt.score, abs=1e-6)
        assert [piece.token for piece in found] == expected


@pytest.mark.parametrize("order", ["in turns", "one after the other", "backwards"])
def test_generations_of_a_batch_are_those_of_their_prompts(
    guarded: GuardedGenerator, order: str
) -> None:
    expected = [list(one) for one in _alone(guarded)]
    batch = _together(guarded)
    if order == "in turns":
        steps = list(zip_longest(*batch))
        found = [[piece for piece in column if piece is not None] for column in zip(*steps)]  # noqa: B905
    else:
        rows = batch[::-1] if order == "backwards" else batch
        found = [list(one) for one in rows]
        found = found[::-1] if order == "backwards" else found
    assert [[p.token for p in row] for row in found] == [[p.token for p in row] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert [p.score for p in one] == pytest.approx([p.score for p in other], abs=1e-4)


def test_padding_is_not_pooled(guarded: GuardedGenerator) -> None:
    for one, other in zip(_together(guarded), _alone(guarded), strict=True):
        assert one.prompt.tokens == other.prompt.tokens == one.prompt_tokens
        assert one.prompt.score == pytest.approx(other.prompt.score, abs=1e-4)


def test_each_row_stops_by_itself(guarded: GuardedGenerator) -> None:
    scores = [[one.prompt.score, *(piece.score for piece in one)] for one in _alone(guarded)]
    *_, second, highest = sorted({score for row in scores for score in row})
    stopped = next(number for number, row in enumerate(scores) if highest in row)
    batch = _together(guarded, threshold=(second + highest) / 2)
    for number, (one, row) in enumerate(zip(batch, scores, strict=True)):
        pieces = list(one)
        if number == stopped:
            assert one.finish == "harmful"
            assert len(pieces) == max(row.index(highest) - 1, 0)
        else:
            assert one.finish in ("stop", "length")
            assert len(pieces) == len(row) - 1


def test_a_closed_row_lets_the_others_go_on(guarded: GuardedGenerator) -> None:
    expected = [[piece.token for piece in one] for one in _alone(guarded)]
    first, *others = _together(guarded)
    first.close()
    for one, tokens in zip(others, expected[1:], strict=True):
        assert [piece.token for piece in one] == tokens


@pytest.mark.parametrize("failure", [BackendError("it ended"), KeyboardInterrupt("it ended")])
def test_after_a_failure_no_row_gives_text(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    batch = _together(guarded)
    next(batch[0])

    def fail(self: Batch) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "_values", fail)
        with pytest.raises(type(failure), match="it ended"):
            list(batch[0])
    for other in batch[1:]:
        with pytest.raises(BackendError, match="it ended"):
            list(other)


def test_rows_may_have_a_thread_each(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [[piece.token for piece in one] for one in _alone(guarded)]
    steps, engine = Run.steps, threading.Lock()

    def one_thread_at_a_time(run: Run) -> list[int]:
        assert engine.acquire(blocking=False), "two threads are in the engine"
        try:
            time.sleep(0.001)  # lets others go on
            return steps(run)
        finally:
            engine.release()

    monkeypatch.setattr(Run, "steps", one_thread_at_a_time)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        found = list(pool.map(list, _together(guarded)))
    assert [[piece.token for piece in row] for row in found] == expected


@pytest.mark.parametrize("closed", [[1], [0], [0, 1, 2]])
def test_a_signals_handler_may_close_rows_amid_a_step(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch, closed: list[int]
) -> None:
    expected = [[piece.token for piece in one] for one in _alone(guarded)]
    batch, steps = _together(guarded), Run.steps

    def interrupted(run: Run) -> list[int]:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGTERM)
        return steps(run)

    def close(*_: object) -> None:
        for number in closed:
            batch[number].close()

    monkeypatch.setattr(Run, "steps", interrupted)
    before = signal.signal(signal.SIGTERM, close)
    try:
        for number, (one, tokens) in enumerate(zip(batch, expected, strict=True)):
            if number in closed:
                with pytest.raises(BackendError, match="it was closed"):
                    list(one)
            else:
                assert [piece.token for piece in one] == tokens
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_batch_of_none_is_refused(guarded: GuardedGenerator) -> None:
    with pytest.raises(InputError, match="empty"):
        guarded.generate_batch([])
