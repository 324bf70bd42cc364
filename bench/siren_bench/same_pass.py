"""What it costs a generator to guard itself, against no guard and against one beside it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from siren_runtime import Guard, GuardedGenerator, Patience, Sampling
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.generation.engine import Engine

from .record import markdown_table

PLAIN = "plain"
# Stands for the rules of a caller; it is folded at every token, and never in force.
_RULES = (Patience(1 << 20, 1 << 20, 1.0),)
_GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Plan:
    """What to measure: responses of up to `tokens` tokens to a prompt, `rounds` of each subject."""

    prompt: str
    tokens: int
    rounds: int
    threads: int


def measure_same_pass(
    plain: Path, grafted: Path, bundle: Path | None, plan: Plan, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Generate in every way, in turns, in one process.

    Args:
        plain: the model folder, which `grafted` was made of.
        bundle: of a guard that streams beside the plain model; None leaves that out.

    Returns:
        For each subject the seconds and the processor's seconds a token, one a round. The prompt's
        are not in them.
    """
    subjects = _subjects(plain, grafted, bundle, plan)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    names = list(subjects)
    for generate in subjects.values():  # to warm up
        generate()
    for number in range(plan.rounds):
        progress("round", number, plan.rounds)
        for name in names if number % 2 == 0 else names[::-1]:
            samples[name].append(subjects[name]())
    return [
        {
            "subject": name,
            "seconds_per_token": [wall for wall, _ in rounds],
            "processor_seconds_per_token": [busy for _, busy in rounds],
            "to_plain": [
                wall / reference
                for (wall, _), (reference, _) in zip(rounds, samples[PLAIN], strict=True)
            ],
        }
        for name, rounds in samples.items()
    ]


def same_pass_table(results: Sequence[dict[str, Any]]) -> str:
    """The medians, and the spread of what each costs over the plain model in the same round."""
    rows = []
    for result in results:
        ratios = sorted(result["to_plain"])
        over = [100 * (ratio - 1) for ratio in (median(ratios), ratios[0], ratios[-1])]
        rows.append(
            [
                result["subject"],
                f"{1 / median(result['seconds_per_token']):.1f}",
                f"{1e3 * median(result['processor_seconds_per_token']):.2f}",
                f"{over[0]:+.1f} % ({over[1]:+.1f} to {over[2]:+.1f})",
            ]
        )
    header = ["", "tokens a second", "processor ms a token", "time over plain"]
    return markdown_table(header, rows)


def _subjects(
    plain: Path, grafted: Path, bundle: Path | None, plan: Plan
) -> dict[str, Callable[[], tuple[float, float]]]:
    model = Engine(plain, threads=plan.threads)
    guarded = GuardedGenerator.load(grafted, threads=plan.threads)
    tokens = guarded.prompt_tokens(plan.prompt, True, plan.tokens)

    def alone(engine: Engine) -> tuple[float, float]:
        run, pieces = _started(engine, tokens, plan)
        with_ends = engine.ends

        def step() -> bool:
            token = run.step()
            pieces.decode(token)
            return token not in with_ends

        return _timed(step, plan.tokens)

    def same_pass(every: int) -> tuple[float, float]:
        generation = guarded.generate(
            plan.prompt, max_tokens=plan.tokens, sampling=_GREEDY, rules=_RULES, every=every
        )
        with generation:
            return _timed(lambda: next(generation, None) is not None, plan.tokens)

    def beside(guard: Guard) -> tuple[float, float]:
        run, pieces = _started(model, tokens, plan)
        with guard.stream(plan.prompt, rules=_RULES) as stream:
            stream.feed(" ")

            def step() -> bool:
                token = run.step()
                if text := pieces.decode(token):
                    stream.feed(text)
                return token not in model.ends

            return _timed(step, plan.tokens)

    subjects: dict[str, Callable[[], tuple[float, float]]] = {
        PLAIN: lambda: alone(model),
        "grafted": lambda: alone(guarded.engine),
        "grafted, head and rules at every token": lambda: same_pass(1),
        "grafted, head and rules every 4 tokens": lambda: same_pass(4),
    }
    if bundle is not None:
        guard = Guard.load(bundle, backend="cpu", threads=plan.threads, streaming=True)
        subjects["plain, a guard's stream beside it"] = lambda: beside(guard)
    return subjects


def _started(engine: Engine, tokens: Sequence[int], plan: Plan) -> tuple[Any, Any]:
    run = engine.run(len(tokens) + plan.tokens + 1, _GREEDY.search())
    run.append(tokens)
    return run, engine.pieces()


def _timed(step: Callable[[], bool], tokens: int) -> tuple[float, float]:
    """Seconds and processor seconds a step, over as many as there are, up to `tokens`."""
    wall, busy, count = time.perf_counter(), time.process_time(), 0
    while count < tokens and step():
        count += 1
    done = max(count, 1)
    return (time.perf_counter() - wall) / done, (time.process_time() - busy) / done
