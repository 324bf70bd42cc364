"""Our streams and generators of the same backbone, a token at a time, in turns.

All are in one process and take turns of a few tokens at the same positions, so that a disturbance
falls on neighbours alike. A turn's first token is not counted, since the threads of whoever ran
before it may still wait for work.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from siren_bench.engines.engine import SirenEdge
from siren_bench.peers.genai import Genai
from siren_bench.records.samples import in_turns, reason
from siren_runtime import Guard

Step = Callable[[], object]  # reads one more token
Seconds = dict[str, list[list[float]]]  # a token, by engine, walk and turn


@dataclass(frozen=True)
class Turns:
    """Each engine reads or writes `tokens` tokens, `turn` at a time, `walks` times anew."""

    tokens: int
    turn: int
    walks: int


def measure_turns(
    ours: Sequence[SirenEdge], generators: Sequence[Genai], turns: Turns
) -> tuple[Seconds, dict[str, str]]:
    """Time a token of each engine, in the same process.

    A stream's token runs the backbone as far as the head reads, the head and the decision; a
    generator's runs all of the backbone and its language-model head, and chooses the likeliest.

    Returns:
        The mean seconds a token in each turn; and for each generator that does not run why not.
    """
    ids, failed = token_ids(turns.tokens), {}
    begin = {engine.name: _stream(engine, ids) for engine in ours}
    for engine in generators:
        try:
            begin[engine.name] = _generation(engine, ids[0])
        except Exception as error:  # noqa: PERF203 - whatever its library raises
            failed[engine.name] = reason(error)
    for start in begin.values():  # to warm up
        with ExitStack() as stack:
            _a_token(start(stack), turns.turn)
    seconds: Seconds = {name: [] for name in begin}
    for _ in range(turns.walks):
        with ExitStack() as stack:
            steps = {name: start(stack) for name, start in begin.items()}
            for name in steps:
                seconds[name].append([])
            count = (turns.tokens - 1) // (turns.turn + 1)
            for _, turn in in_turns([*steps.items()], count, warm_ups=0):
                for name, step in turn:
                    step()
                    seconds[name][-1].append(_a_token(step, turns.turn))
    return seconds, failed


def turn_ratios(entries: Sequence[dict[str, Any]], seconds: Seconds) -> list[dict[str, Any]]:
    """Add to our engines' entries what their turns took, and how that is to each generator's.

    Returns:
        The entries of the generators.
    """
    ours = {entry["engine"]: entry for entry in entries}
    generators = [name for name in seconds if name not in ours]
    for name, entry in ours.items():
        entry["turns_s"] = seconds[name]
        entry["to_generators"] = {
            other: (np.array(seconds[name]) / np.array(seconds[other])).ravel().tolist()
            for other in generators
        }
    return [{"engine": name, "turns_s": seconds[name]} for name in generators]


def token_ids(count: int) -> list[int]:
    """Token ids that every vocabulary has."""
    return [int(token) for token in np.random.default_rng(0).integers(5, 300, count)]


def _stream(engine: SirenEdge, ids: Sequence[int]) -> Callable[[ExitStack], Step]:
    guard = Guard.load(engine.bundle, backend="cpu", threads=engine.threads, streaming=True)

    def start(stack: ExitStack) -> Step:
        stream, tokens = stack.enter_context(guard.stream()), iter(ids)
        stream.feed_tokens([next(tokens)])
        return lambda: stream.feed_tokens([next(tokens)])

    return start


def _generation(engine: Genai, first: int) -> Callable[[ExitStack], Step]:
    model = engine.load()

    def start(stack: ExitStack) -> Step:
        generator = engine.begin(model, [first])
        generator.generate_next_token()  # which was computed with the prompt
        return lambda: generator.generate_next_token()

    start(ExitStack())  # what does not run says so before anything is timed
    return start


def _a_token(step: Step, count: int) -> float:
    """The mean seconds of so many steps."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count
