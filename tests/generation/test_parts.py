"""Prompts are read in parts, between which others go on, and nothing of a verdict depends on it."""

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from generators import FAMILIES, need_genai
from siren_runtime import GuardedGenerator, InterruptedCall, Sampling
from siren_runtime.generation import generation
from siren_runtime.generation.engine import Engine, Run
from siren_runtime.text import deadline

need_genai()
GREEDY = Sampling(temperature=0)
TOKENS = 8
PROMPT = "The history of bread begins with grain and water."
RESPONSE = "Then came salt, and then came the oven, in which it was baked."


def _read(engine: Engine, tokens: Sequence[int], cuts: Sequence[int]) -> tuple[object, list[int]]:
    """The logits of a prompt that is read in parts, and the tokens that follow it."""
    run, logits = engine.run(len(tokens) + TOKENS, GREEDY.search()), []
    for start, stop in pairwise(cuts):
        run.append(tokens[start:stop])
        logits.append(run.output("logits"))
    return np.concatenate(logits, axis=1), [run.step() for _ in range(TOKENS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_makes_of_parts_what_it_makes_of_the_whole(
    family: str, generator: Callable[..., Path]
) -> None:
    engine = Engine(generator(family), threads=1)
    tokens = engine.encode(PROMPT * 4)[:100]  # more than a block of Gemma looks back over
    assert len(tokens) == 100
    expected, chosen = _read(engine, tokens, [0, 100])
    for cuts in ([0, 64, 100], [0, 32, 64, 96, 100], [0, 99, 100]):
        found, then = _read(engine, tokens, cuts)
        np.testing.assert_allclose(found, expected, atol=1e-3)  # type: ignore[arg-type]
        assert then == chosen


@pytest.fixture
def appended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each engine run of prompts has from now on."""
    counts, append = list[int](), Run.append

    def counting(run: Run, tokens: Sequence[int]) -> None:
        counts.append(len(tokens))
        append(run, tokens)

    monkeypatch.setattr(Run, "append", counting)
    return counts


def test_a_prompt_and_a_response_are_read_in_parts_and_judged_as_at_once(
    guarded: GuardedGenerator, appended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_tokens": TOKENS, "sampling": GREEDY, "threshold": 1.0}

    def judged() -> tuple[float, list[float], float]:
        found = guarded.generate(PROMPT * 3, **options)  # type: ignore[arg-type]
        written = guarded.read("Bread?", RESPONSE * 2)
        return found.prompt.score, [piece.score for piece in found], written.score

    prompt, pieces, written = judged()
    of_prompt = len(guarded.prompt_tokens(PROMPT * 3, True, TOKENS))
    asked, answer = (
        len(guarded.prompt_tokens("Bread?", True, TOKENS)),
        len(guarded.engine.encode(RESPONSE * 2)),
    )
    assert appended == [64, of_prompt - 64, asked, 64, answer - 64]
    monkeypatch.setattr(generation, "_TOKENS_AT_ONCE", 2048)
    expected = judged()
    assert appended[5:] == [of_prompt, asked, answer]
    assert prompt == pytest.approx(expected[0], abs=1e-6)
    assert pieces == pytest.approx(expected[1], abs=1e-6)
    assert written == pytest.approx(expected[2], abs=1e-6)


@pytest.mark.parametrize("cause", ["cancel", "deadline"])
def test_a_prompt_and_a_response_are_given_up_between_their_parts(
    guarded: GuardedGenerator, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    append, now = Run.append, [0.0]

    def append_then_end(run: Run, tokens: Sequence[int]) -> None:
        append(run, tokens)
        if len(tokens) == 64:
            now[0] = 11.0
            cancel.set()

    monkeypatch.setattr(Run, "append", append_then_end)
    monkeypatch.setattr(deadline, "monotonic", lambda: now[0])
    said = {"cancel": "cancelled", "deadline": "the deadline of 10 s passed"}[cause]
    for what, call in (
        ("prompt", lambda **options: guarded.generate(PROMPT * 3, max_tokens=8, **options)),
        ("prompt", lambda **options: guarded.read(PROMPT * 3, **options)),
        ("response", lambda **options: guarded.read("Bread?", RESPONSE * 2, **options)),
    ):
        now[0], cancel = 0.0, threading.Event()
        options = {"cancel": cancel} if cause == "cancel" else {"deadline": 10}
        with pytest.raises(InterruptedCall, match=f"^{said} after 64 of .* of the {what}$"):
            call(**options)
