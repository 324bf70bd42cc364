"""What decides in a generation decides in a stream of the same tokens, and by the same scores."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from generators import need_genai
from siren_export.graft.graft import graft
from siren_export.heads.registry import load_artifact
from siren_runtime import (
    AtTier,
    Guard,
    GuardedGenerator,
    Hysteresis,
    Patience,
    Sampling,
    Schedule,
)
from siren_runtime.bundle.graphs import SCORE
from siren_runtime.generation.manifest import NEURONS_OUTPUT
from siren_runtime.streaming.decision import Rule

need_genai()
PROMPT, TOKENS = "a", 20
OPTIONS = {"max_tokens": TOKENS, "sampling": Sampling(temperature=0), "threshold": 1.0}


def _widest_gap(scores: Sequence[float]) -> float:
    """A threshold far from all scores, so that rounding carries none over it."""
    low, high = max(pairwise(sorted(scores)), key=lambda pair: pair[1] - pair[0])
    return (low + high) / 2


def _rule(name: str, threshold: float, soft: int) -> Rule:
    return {
        "patience": Patience(2, 3, threshold),
        "hysteresis": Hysteresis(threshold, threshold / 2),
        "schedule": Schedule(((0, 1.0), (soft, threshold))),
        "tier": AtTier("block", threshold),
    }[name]


@pytest.mark.parametrize("name", ["patience", "hysteresis", "schedule", "tier"])
@pytest.mark.parametrize("where", ["prompt", "response"])
def test_a_rule_comes_into_force_where_it_does_in_a_stream(
    guarded: GuardedGenerator, guard: Guard, name: str, where: str
) -> None:
    pieces = list(guarded.generate(PROMPT, **OPTIONS))  # type: ignore[arg-type]
    prompt = guarded.prompt_tokens(PROMPT, True, TOKENS)
    tokens = [*prompt, *(piece.token for piece in pieces)]
    with guard.stream() as stream:
        scores = [stream.feed_tokens([token]).score for token in tokens]
    of_prompt, of_response = scores[: len(prompt)], scores[len(prompt) :]
    above = sorted(score for score in of_response if score > max(of_prompt))
    of_place = of_prompt if where == "prompt" else [max(of_prompt), *above[: len(above) // 2]]
    soft = 3 if where == "prompt" else len(prompt) + 3
    rule = _rule(name, _widest_gap(of_place), soft)
    with guard.stream(rules=[rule]) as stream:
        parts = prompt, *([piece.token] for piece in pieces)
        fed = [stream.feed_tokens(part).decisions for part in parts]
    place = next(number for number, decisions in enumerate(fed) if decisions)
    assert (place == 0) == (where == "prompt")
    for every in (1, 4):
        generation = guarded.generate(PROMPT, rules=[rule], every=every, **OPTIONS)  # type: ignore[arg-type]
        given = [piece.token for piece in generation]
        assert (generation.finish, generation.decided_at) == ("harmful", place)
        assert given == [piece.token for piece in pieces[: max(place - 1, 0)]]
        assert generation.stopped_by == str(rule)
        for found, expected in zip(generation.result.decisions, fed[place], strict=True):
            assert (found.rule, found.token) == (expected.rule, expected.token)
            assert found.score == pytest.approx(expected.score, abs=1e-4)


def test_tiers_are_rules_and_those_of_responses_where_there_are_such(copied: Path) -> None:
    decisions = json.loads((copied / "guard.json").read_text())["decisions"]
    decisions["harm"]["tiers"] = [{"name": "block", "threshold": 0.9}]
    _decide(copied, decisions)
    generator = GuardedGenerator.load(copied, threads=1)
    assert generator.tiers == (AtTier("block", 0.9),)
    tiers = [{"name": "block", "threshold": 0.0}]
    decisions["harm"]["responses"] = {"threshold": 0.5, "tiers": tiers}
    _decide(copied, decisions)
    generator = GuardedGenerator.load(copied, threads=1)
    assert generator.tiers == (AtTier("block", 0.0),)
    generation = generator.generate(PROMPT, max_tokens=2, rules=generator.tiers)
    assert generation.stopped_by == "tier(block, 0)"


def test_a_response_alone_is_scored_by_the_means_of_its_own_neurons(
    generator: Callable[..., Path], head: Path, tmp_path: Path, guard: Guard
) -> None:
    folder = tmp_path / "response"
    graft(generator("llama"), load_artifact(head), folder, foreign=True, pooled="response")
    alone = GuardedGenerator.load(folder, threads=1)
    tokens = alone.prompt_tokens(PROMPT, True, TOKENS)
    generation = alone.generate(PROMPT, **OPTIONS)  # type: ignore[arg-type]
    with guard.stream() as stream:
        assert generation.prompt.score == pytest.approx(stream.feed_tokens(tokens).score, abs=1e-4)
    pieces = list(generation)
    assert generation.result.tokens == len(pieces)
    run = alone.engine.run(len(tokens) + TOKENS + 1, {})
    run.append(tokens)
    run.append([piece.token for piece in pieces])
    neurons = run.output(NEURONS_OUTPUT)[0]
    means = [neurons[: count + 1].mean(axis=0) for count in range(len(pieces))]
    session = ort.InferenceSession(folder / "head.onnx")
    (expected,) = session.run([SCORE], {session.get_inputs()[0].name: np.stack(means)})
    assert [piece.score for piece in pieces] == pytest.approx(expected.tolist(), abs=1e-4)


def _decide(folder: Path, decisions: object) -> None:
    path = folder / "guard.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decisions": decisions}))
