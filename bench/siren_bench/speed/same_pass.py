"""What it costs a generator to guard itself, against no guard and against one beside it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from siren_bench.records.record import markdown_table
from siren_runtime import Guard, GuardedGenerator, Patience, Sampling
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import InputError
from siren_runtime.generation.engine import Engine

PLAIN = "plain"
BESIDE = "plain, a guard's stream beside it"
# Stands for the rules of a caller; it is folded at every token, and never in force.
_RULES = (Patience(1 << 20, 1 << 20, 1.0),)
# A threshold that no score of these answers reaches, nor a span's its own, which it takes along.
_NEVER = 1.0
_GREEDY = Sampling(temperature=0)
# Tokens of a response before the next subject has its turn; the first ones are not counted, since
# the threads of the engine before still spin and take a processor.
_SETTLING, _BLOCK = 6, 16


@dataclass(frozen=True)
class Plan:
    """What to measure: responses of up to `tokens` tokens to a prompt, `rounds` of each subject.

    Attributes:
        chat: whether the prompt stands in the model's chat template.
        every: tokens that the head reads at once, two subjects each.
        beside: tokens of each round that a separate guard's stream reads, which take it long.
    """

    prompt: str
    tokens: int
    rounds: int
    threads: int
    chat: bool = True
    every: tuple[int, ...] = (1, 4, 16)
    beside: int = 32


# What a subject does, token by token: it takes one further, and says whether there is a next.
Step = Callable[[], bool]


@dataclass(frozen=True)
class _Block:
    """What a block of tokens took, in seconds and in the processor's."""

    tokens: int
    wall: float
    busy: float


@dataclass
class _Response:
    """A response that grows, and what its tokens cost."""

    step: Step
    left: int
    blocks: list[_Block] = field(default_factory=list)

    def go_on(self) -> None:
        """Take a block of tokens, or those that are left."""
        self._take(_SETTLING)
        wall, busy = time.perf_counter(), time.process_time()
        tokens = self._take(_BLOCK)
        if tokens:
            passed = time.perf_counter() - wall, time.process_time() - busy
            self.blocks.append(_Block(tokens, *passed))

    def _take(self, most: int) -> int:
        """Take so many tokens, or those that are left; return how many there were."""
        left = self.left
        for _ in range(min(most, left)):
            self.left -= 1
            if not self.step():
                taken, self.left = left - self.left, 0
                return taken
        return left - self.left

    def counted(self) -> list[_Block]:
        """The blocks that count.

        Raises:
            InputError: the response ended before any did.
        """
        if not self.blocks:
            raise InputError(
                f"the response ended within {_SETTLING} tokens, which are not counted; give "
                "another --prompt, or more --tokens and --beside"
            )
        return self.blocks


def measure_same_pass(
    plain: Path, grafted: Path, bundle: Path | None, plan: Plan, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Generate in every way, in turns of a few tokens, in one process.

    Args:
        plain: the model folder, which `grafted` was made of.
        bundle: of a guard that streams beside the plain model; None leaves that out.

    Returns:
        For each subject the seconds and the processor's seconds a token, one a round. The prompt's
        are not in them.
    """
    begin = _subjects(plain, grafted, bundle, plan)
    samples: dict[str, list[list[_Block]]] = {name: [] for name in begin}
    _round(begin, plan, forward=True)  # to warm up
    for number in range(plan.rounds):
        progress("round", number, plan.rounds)
        for name, blocks in _round(begin, plan, forward=number % 2 == 0).items():
            samples[name].append(blocks)
    return [
        {
            "subject": name,
            "seconds_per_token": [_per_token(blocks, "wall") for blocks in rounds],
            "processor_seconds_per_token": [_per_token(blocks, "busy") for blocks in rounds],
            "to_plain": [  # at the same places of the response, and in the same turns
                _per_token(blocks, "wall") / _per_token(reference[: len(blocks)], "wall")
                for blocks, reference in zip(rounds, samples[PLAIN], strict=True)
            ],
        }
        for name, rounds in samples.items()
    ]


def _per_token(blocks: Sequence[_Block], what: Literal["wall", "busy"]) -> float:
    seconds: float = sum(getattr(block, what) for block in blocks)
    return seconds / sum(block.tokens for block in blocks)


def _round(
    begin: dict[str, Callable[[], Step]], plan: Plan, *, forward: bool
) -> dict[str, list[_Block]]:
    """A response of each subject, in turns of a block; what its blocks took."""
    responses = {
        name: _Response(start(), min(plan.tokens, plan.beside) if name == BESIDE else plan.tokens)
        for name, start in begin.items()
    }
    turns = list(responses.values())
    while any(response.left for response in turns):
        for response in turns if forward else turns[::-1]:
            response.go_on()
        forward = not forward
    return {name: response.counted() for name, response in responses.items()}


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
) -> dict[str, Callable[[], Step]]:
    """What begins a response of each subject, its prompt read."""
    model = Engine(plain, threads=plan.threads)
    guarded = GuardedGenerator.load(grafted, threads=plan.threads)
    tokens = guarded.prompt_tokens(plan.prompt, plan.chat, plan.tokens)

    def alone(engine: Engine) -> Step:
        run, pieces = _started(engine, tokens, plan)

        def step() -> bool:
            token = run.step()
            pieces.decode(token)
            return token not in engine.ends

        return step

    def same_pass(every: int, how: dict[str, Any]) -> Step:
        generation = guarded.generate(
            plan.prompt,
            chat=plan.chat,
            max_tokens=plan.tokens,
            sampling=_GREEDY,
            every=every,
            **how,
        )
        return lambda: next(generation, None) is not None

    def beside(guard: Guard) -> Step:
        run, pieces = _started(model, tokens, plan)
        stream = guard.stream(plan.prompt, rules=_RULES)
        stream.feed(" ")

        def step() -> bool:
            token = run.step()
            if text := pieces.decode(token):
                stream.feed(text)
            return token not in model.ends

        return step

    subjects: dict[str, Callable[[], Step]] = {
        PLAIN: partial(alone, model),
        "grafted": partial(alone, guarded.engine),
    }
    by_default = "head, threshold and spans" if guarded.judge.limits.spans else "head and threshold"
    judged: dict[str, dict[str, Any]] = {
        "head and rules": {"rules": _RULES},
        by_default: {"threshold": _NEVER},
    }
    for every in plan.every:
        when = "at every token" if every == 1 else f"every {every} tokens"
        for what, how in judged.items():
            subjects[f"grafted, {what} {when}"] = partial(same_pass, every, how)
    if bundle is not None:
        guard = Guard.load(bundle, backend="cpu", threads=plan.threads, streaming=True)
        subjects[BESIDE] = partial(beside, guard)
    return subjects


def _started(engine: Engine, tokens: Sequence[int], plan: Plan) -> tuple[Any, Any]:
    run = engine.run(len(tokens) + plan.tokens + 1, _GREEDY.search())
    run.append(tokens)
    return run, engine.pieces()
