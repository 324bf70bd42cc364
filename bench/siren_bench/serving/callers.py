"""Those who ask: tasks of an event loop, or threads."""

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from .load import NOT_CONNECTED, Answer, Load

Reply = tuple[int, float | None]  # the status and the score
_PAUSE_S = 0.01  # before one who found nobody tries again


async def ask_by_tasks(
    ask: Callable[[str], Awaitable[Reply]], texts: list[str], load: Load
) -> list[Answer]:
    """Put a load on something that is awaited."""
    answers: list[Answer] = []

    async def one(text: int, due: float) -> None:
        status, score = await ask(texts[text])
        answers.append(Answer(text, due, time.monotonic(), status, score))
        if status == NOT_CONNECTED:
            await asyncio.sleep(_PAUSE_S)

    async def caller(number: int) -> None:
        chosen = random.Random(load.seed + number)
        while (now := time.monotonic()) < load.end:
            await one(chosen.randrange(len(texts)), now)

    await asyncio.sleep(load.start - time.monotonic())
    if load.callers is not None:
        await asyncio.gather(*map(caller, range(load.callers)))
        return answers
    tasks = set()
    for text, due in _arrivals(load, len(texts)):
        await asyncio.sleep(due - time.monotonic())
        tasks.add(asyncio.create_task(one(text, due)))
    await asyncio.gather(*tasks)
    return answers


def ask_by_threads(
    ask: Callable[[str], Reply], texts: list[str], load: Load, threads: int
) -> list[Answer]:
    """Put a load on something that blocks.

    Args:
        threads: of the pool that serves an open loop; in a closed one each caller is a thread.
    """
    answers: list[Answer] = []

    def one(text: int, due: float) -> None:
        status, score = ask(texts[text])
        answers.append(Answer(text, due, time.monotonic(), status, score))

    def caller(number: int) -> None:
        chosen = random.Random(load.seed + number)
        while (now := time.monotonic()) < load.end:
            one(chosen.randrange(len(texts)), now)

    time.sleep(max(0.0, load.start - time.monotonic()))
    if load.callers is not None:
        callers = [threading.Thread(target=caller, args=(n,)) for n in range(load.callers)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        return answers
    with ThreadPoolExecutor(threads) as pool:
        for text, due in _arrivals(load, len(texts)):
            time.sleep(max(0.0, due - time.monotonic()))
            pool.submit(one, text, due)
    return answers


def _arrivals(load: Load, texts: int) -> Iterator[tuple[int, float]]:
    """The texts of an open loop, and when each is due."""
    chosen, due = random.Random(load.seed), load.start
    while (due := due + chosen.expovariate(load.rate)) < load.end:
        yield chosen.randrange(texts), due
