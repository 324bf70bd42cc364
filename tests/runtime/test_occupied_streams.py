"""What goes on while streams are opened, and between the runs of a long piece."""

import asyncio
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gated import WAIT_S
from siren_runtime import AsyncGuard, Guard, InterruptedCall, Sharing
from siren_runtime.streaming.reader import ReencodingReader

LONG = "a long prompt. " * 40
_T = TypeVar("_T")


@pytest.fixture
def plain(bundle: Path) -> Guard:
    return Guard.load(bundle, threads=1, unreadable="review")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():  # the tiny bundle's streams are read anew at each feed
        warnings.filterwarnings("ignore", message=".*re-encodes its text")
        yield


class Held:
    """A method that waits while it is held."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.begun, self._go_on = threading.Event(), threading.Event()
        self._go_on.set()

    def hold(self) -> None:
        self._go_on.clear()

    def let_go(self) -> None:
        self._go_on.set()

    def __get__(self, owner: Any, kind: Any) -> Callable[..., Any]:
        def held(*arguments: Any, **options: Any) -> Any:
            if not self._go_on.is_set():
                self.begun.set()
                assert self._go_on.wait(WAIT_S)
            return self._method(owner, *arguments, **options)

        return held


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held(Guard.streams)
    monkeypatch.setattr(Guard, "streams", held)
    return held


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held(ReencodingReader.read)
    monkeypatch.setattr(ReencodingReader, "read", held)
    return held


def _run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, WAIT_S))


async def _eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_texts_are_answered_while_streams_are_opened(plain: Guard, opening: Held) -> None:
    async def test() -> None:
        async with AsyncGuard(plain, Sharing(runs=2)) as guard:
            opening.hold()
            streams = [guard.stream() for _ in range(3)]
            entered = [asyncio.create_task(stream.__aenter__()) for stream in streams]
            await _eventually(opening.begun.is_set)
            try:
                assert (await asyncio.wait_for(guard.score("text"), WAIT_S / 3)).tokens == 5
                assert not any(task.done() for task in entered)
            finally:
                opening.let_go()
            await asyncio.gather(*entered)
            results = await asyncio.gather(*(stream.feed("text") for stream in streams))
            assert [result.tokens for result in results] == [5] * 3
            for stream in streams:
                await stream.__aexit__(None, None, None)

    _run(test())


def test_streams_that_cannot_be_opened_are_tried_again(
    plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with AsyncGuard(plain) as guard:
            with monkeypatch.context() as patch:
                patch.setattr(Guard, "streams", None)
                with pytest.raises(TypeError):
                    await guard.stream().__aenter__()
            async with guard.stream() as stream:
                assert (await stream.feed("text")).tokens == 5

    _run(test())


def test_texts_are_answered_between_the_runs_of_a_long_piece(plain: Guard, reading: Held) -> None:
    ended: list[str] = []

    async def told(name: str, answer: Awaitable[_T]) -> _T:
        try:
            return await answer
        finally:
            ended.append(name)

    async def test() -> None:
        gone = threading.Event()
        async with AsyncGuard(plain) as guard, guard.stream(LONG) as long, guard.stream() as late:
            reading.hold()
            read = asyncio.create_task(told("long", long.feed("piece")))
            await _eventually(reading.begun.is_set)
            cancelled = guard.score("text", cancel=gone)
            rest = [
                asyncio.create_task(told("text", guard.score("text"))),
                asyncio.create_task(told("cancelled text", cancelled)),
                asyncio.create_task(told("late piece", late.feed(LONG, deadline=1e-9))),
            ]
            await _eventually(lambda: guard.dispatcher.waiting == (2, 10, 1))
            gone.set()
            reading.let_go()
            text, *errors = await asyncio.gather(*rest, return_exceptions=True)
            await read
            assert not isinstance(text, BaseException)
            assert text.score == pytest.approx(plain.score("text").score, abs=1e-6)
            assert [type(error) for error in errors] == [InterruptedCall] * 2
        assert ended[-1] == "long"

    _run(test())
