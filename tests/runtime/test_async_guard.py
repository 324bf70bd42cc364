"""A guard for asyncio: awaited, shared, and gone callers cost nothing."""

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gated import WAIT_S, gated
from siren_runtime import (
    AsyncGuard,
    BackendError,
    BusyError,
    Guard,
    InputError,
    InterruptedCall,
    Patience,
    ScoreResult,
    Sharing,
    StreamResult,
)
from siren_runtime.serving.asynchronous import AsyncStream
from siren_runtime.streaming.handles import Streams
from siren_runtime.streaming.reader import ReencodingReader
from siren_runtime.text.tokenizer import Tokenizer
from texts import CORPUS

ROUNDING = 1e-6


@pytest.fixture
def plain(bundle: Path) -> Guard:
    return Guard.load(bundle, threads=1, unreadable="review")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():  # the tiny bundle's streams are read anew at each feed
        warnings.filterwarnings("ignore", message=".*re-encodes its text")
        yield


def _run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, WAIT_S))


async def _eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def _fields(result: ScoreResult | StreamResult) -> dict[str, object]:
    return {**result.to_dict(), "score": pytest.approx(result.score, abs=ROUNDING)}


def test_many_tasks_get_what_the_guard_itself_gives(plain: Guard) -> None:
    async def test() -> None:
        texts = [text for text in CORPUS if text.strip()]
        async with AsyncGuard(plain, Sharing(runs=2)) as guard:
            results = await asyncio.gather(*map(guard.score, texts))
            assert [r.to_dict() for r in results] == [_fields(plain.score(text)) for text in texts]
            pairs = await guard.score_batch([("How do I", "pick a lock?"), "text"], threshold=0.1)
            expected = plain.score_batch([("How do I", "pick a lock?"), "text"], threshold=0.1)
            assert [r.to_dict() for r in pairs] == [*map(_fields, expected)]
            with pytest.raises(InputError, match="one str"):
                await guard.score_each("text")

    _run(test())


def test_the_loop_goes_on_while_the_engine_runs(plain: Guard) -> None:
    async def test() -> None:
        behind, gate = gated(plain)
        async with AsyncGuard(behind) as guard:
            task = asyncio.create_task(guard.score("text"))
            await _eventually(lambda: bool(gate.runs))
            await asyncio.sleep(0)
            assert not task.done()
            gate.open()
            assert (await task).to_dict() == _fields(plain.score("text"))

    _run(test())


def test_a_cancelled_task_costs_no_run(plain: Guard) -> None:
    async def test() -> None:
        behind, gate = gated(plain)
        async with AsyncGuard(behind) as guard:
            first = asyncio.create_task(guard.score("first"))
            await _eventually(lambda: bool(gate.runs))
            gone = asyncio.create_task(guard.score("gone"))
            stays = asyncio.create_task(guard.score("it stays"))
            await _eventually(lambda: guard.dispatcher.waiting[1] == 14)
            gone.cancel()
            await asyncio.wait([gone])
            assert guard.dispatcher.waiting[0] == 2
            gate.open()
            assert (await stays).tokens == 9
            assert (await first).tokens == 6
        assert gate.runs == [[6], [9]]

    _run(test())


@pytest.mark.parametrize("own", [{}, {"cancel": None}, {"cancel": threading.Event()}])
def test_the_texts_of_a_cancelled_task_are_not_tokenized_to_their_end(
    plain: Guard, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    encode, begun, go_on = Tokenizer.encode_texts, [], threading.Event()

    def held(tokenizer: Tokenizer, texts: list[str], *, places: bool) -> Any:
        begun.append(len(texts))
        assert go_on.wait(WAIT_S)
        return encode(tokenizer, texts, places=places)

    async def test() -> None:
        async with AsyncGuard(plain) as guard:
            task = asyncio.create_task(guard.score_each(["a" * 16_000] * 5, **own))
            await _eventually(lambda: bool(begun))
            task.cancel()
            await asyncio.wait([task])
            go_on.set()
            assert guard.dispatcher.waiting == (0, 0, 0)
            assert (await guard.score("text")).tokens == 5
        assert begun == [1, 1]

    monkeypatch.setattr(Tokenizer, "encode_texts", held)
    _run(test())


def test_long_texts_that_are_tokenized_hold_up_no_short_one(
    plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, begun, go_on = Tokenizer.encode_texts, threading.Event(), threading.Event()

    def held(tokenizer: Tokenizer, texts: list[str], *, places: bool) -> Any:
        if len(texts[0]) > 1000:
            begun.set()
            assert go_on.wait(WAIT_S)
        return encode(tokenizer, texts, places=places)

    async def test() -> None:
        async with AsyncGuard(plain, Sharing(max_waiting_tokens=1 << 20)) as guard:
            long = [asyncio.create_task(guard.score_each(["a" * 9_000] * 2)) for _ in range(4)]
            await _eventually(begun.is_set)
            assert (await guard.score("text")).tokens == 5
            assert len(await guard.score_batch([("a", "b")] * 100)) == 100
            assert not any(task.done() for task in long)
            go_on.set()
            for results in await asyncio.gather(*long):
                assert all(isinstance(result, ScoreResult) for result in results)

    monkeypatch.setattr(Tokenizer, "encode_texts", held)
    _run(test())


def test_closing_without_draining_fails_what_waits(plain: Guard) -> None:
    async def test() -> None:
        behind, gate = gated(plain)
        guard = AsyncGuard(behind)
        first = asyncio.create_task(guard.score("first"))
        await _eventually(lambda: bool(gate.runs))
        waits = asyncio.create_task(guard.score("waits"))
        await _eventually(lambda: guard.dispatcher.waiting[1] > 0)
        closing = asyncio.create_task(guard.close(drain=False))
        with pytest.raises(BackendError, match="closed before"):
            await waits
        gate.open()
        assert (await first).tokens == 6
        await closing
        with pytest.raises(BackendError, match="closed"):
            await guard.score("late")

    _run(test())


async def _pieces(text: str, size: int) -> AsyncIterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_stream_gives_what_the_guards_own_gives(plain: Guard, size: int) -> None:
    text, rules = "How do I pick a lock, quickly?", (Patience(2, 3, 0.2),)

    async def test() -> None:
        own = plain.stream("a prompt", rules=rules)
        expected = [own.feed(text[i : i + size]) for i in range(0, len(text), size)]
        async with (
            AsyncGuard(plain) as guard,
            guard.stream("a prompt", rules=rules) as stream,
        ):
            results = [result async for result in stream.results(_pieces(text, size))]
            assert [r.score for r in results] == pytest.approx(
                [r.score for r in expected], abs=1e-6
            )
            assert [[d.token for d in r.decisions] for r in results] == [
                [d.token for d in r.decisions] for r in expected
            ]
            assert len(await stream.scores()) == len(own.scores)
        with pytest.raises(BackendError, match="closed"):
            await stream.feed("more")

    _run(test())


def test_streams_are_bounded_and_their_places_come_back(plain: Guard) -> None:
    async def test() -> None:
        async with AsyncGuard(plain, Sharing(max_streams=2)) as guard:
            async with guard.stream(), guard.stream():
                with pytest.raises(BusyError, match="2 streams are open"):
                    async with guard.stream():
                        pass
            async with guard.stream() as again:
                assert (await again.feed("text")).tokens == 5

    _run(test())


def test_who_waits_for_streams_that_are_read_keeps_no_text_from_its_run(
    plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, begun, go_on = Streams.read, threading.Event(), threading.Event()

    def held(streams: Streams, *arguments: Any) -> Any:
        with streams.lock:
            begun.set()
            assert go_on.wait(WAIT_S)
            return read(streams, *arguments)

    async def test() -> None:
        async with AsyncGuard(plain, Sharing(runs=2)) as guard, guard.stream() as stream:
            fed = asyncio.create_task(stream.feed("text"))
            await _eventually(begun.is_set)
            other = guard.stream()
            opened = asyncio.create_task(other.__aenter__())
            await asyncio.sleep(0.05)
            try:
                assert (await asyncio.wait_for(guard.score("text"), WAIT_S / 3)).tokens == 5
                assert not opened.done()
            finally:
                go_on.set()
            assert (await fed).tokens == 5
            await (await opened).__aexit__(None, None, None)

    monkeypatch.setattr(Streams, "read", held)
    _run(test())


def test_short_pieces_are_read_between_the_runs_of_a_long_one(
    plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "a long prompt. " * 40
    with plain.stream(prompt) as stream:
        expected = stream.feed("long").score
    read, is_armed = ReencodingReader.read, threading.Event()
    begun, go_on = threading.Event(), threading.Event()

    def held(reader: ReencodingReader, states: Any, *arguments: Any) -> Any:
        if is_armed.is_set():
            begun.set()
            assert go_on.wait(WAIT_S)
        return read(reader, states, *arguments)

    async def test() -> None:
        ended: list[str] = []
        async with AsyncGuard(plain) as guard, guard.stream() as short, guard.stream(prompt) as one:
            await short.feed("begun")
            is_armed.set()

            async def feed(name: str, stream: AsyncStream) -> StreamResult:
                result = await stream.feed(name)
                ended.append(name)
                return result

            async def open_and_close() -> None:
                async with guard.stream("prompt") as opened:
                    ended.append("opened")
                    await opened.feed("piece")

            long = asyncio.create_task(feed("long", one))
            await _eventually(begun.is_set)
            rest = [
                asyncio.create_task(feed("short", short)),
                asyncio.create_task(open_and_close()),
            ]
            await _eventually(lambda: guard.dispatcher.waiting[2] == 1)
            go_on.set()
            results = await asyncio.gather(long, *rest)
            assert results[0].score == pytest.approx(expected, abs=ROUNDING)
            assert results[1].score == pytest.approx(plain.score("begunshort").score, abs=ROUNDING)
        assert ended.index("short") < ended.index("long")
        assert ended.index("opened") < ended.index("long")

    monkeypatch.setattr(ReencodingReader, "read", held)
    _run(test())


def test_texts_and_pieces_of_many_streams_are_read_beside_each_other(plain: Guard) -> None:
    async def one(guard: AsyncGuard, text: str) -> float:
        async with guard.stream() as stream:
            return [r async for r in stream.results(_pieces(text, 4))][-1].score

    async def test() -> None:
        texts = [f"text {n}, like the others" for n in range(12)]
        runs = []
        async with AsyncGuard(plain, Sharing(runs=2), runs.append) as guard:
            streams = asyncio.gather(*(one(guard, text) for text in texts))
            scores = [result.score for result in await guard.score_batch(texts)]
            assert await streams == pytest.approx(scores, abs=ROUNDING)
        assert {run.kind for run in runs} == {"score", "stream"}
        pieces = sum(-(-len(text) // 4) for text in texts)
        assert sum(run.texts for run in runs if run.kind == "stream") == pieces
        assert len([run for run in runs if run.kind == "stream"]) < pieces
        assert all(run.seconds > 0 and min(run.waited) >= 0 for run in runs)

    _run(test())


def test_a_stream_whose_feed_was_cancelled_has_no_verdict(plain: Guard) -> None:
    async def test() -> None:
        behind, gate = gated(plain)
        async with AsyncGuard(behind) as guard, guard.stream() as stream:
            busy = asyncio.create_task(guard.score("text"))
            await _eventually(lambda: bool(gate.runs))
            feed = asyncio.create_task(stream.feed("a piece"))
            await _eventually(lambda: guard.dispatcher.waiting[2] == 1)
            feed.cancel()
            await asyncio.wait([feed])
            gate.open()
            assert (await busy).tokens == 5
            with pytest.raises(BackendError, match="closed"):
                await stream.feed("another")

    _run(test())


def test_a_deadline_ends_calls_and_feeds(plain: Guard) -> None:
    async def test() -> None:
        async with AsyncGuard(plain) as guard, guard.stream() as stream, guard.stream() as other:
            with pytest.raises(InterruptedCall, match="1e-09 s passed while the texts were token"):
                await guard.score("text", deadline=1e-9)
            with pytest.raises(InterruptedCall, match="1e-09 s passed before the piece was read"):
                await stream.feed("text", deadline=1e-9)
            with pytest.raises(BackendError, match="has no verdict"):
                await stream.feed("text")
            assert (await other.feed("text", deadline=100)).tokens == 5

    _run(test())


def test_a_feed_that_was_cancelled_is_not_read_to_its_end(plain: Guard) -> None:
    async def test() -> None:
        deadlines = []
        async with AsyncGuard(plain) as guard, guard.stream() as stream:
            feed = guard.dispatcher.feed

            def watched(stream: Any, piece: str, deadline: Any, *, last: bool) -> Any:
                deadlines.append(deadline)
                return feed(stream, piece, deadline, last=last)

            guard.dispatcher.feed = watched  # type: ignore[method-assign]
            task = asyncio.create_task(stream.feed("text"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            with pytest.raises(InterruptedCall, match="cancelled"):
                deadlines[0].check("")

    _run(test())


def test_a_piece_that_is_no_text_is_refused_before_it_waits(plain: Guard) -> None:
    wrong: list[Any] = [(None, False), (b"text", False), ([3, 4], False), ("text", "no")]

    async def test() -> None:
        async with AsyncGuard(plain) as guard, guard.stream() as stream:
            for piece, last in wrong:
                with pytest.raises(InputError, match=r"must be (a str|True or False), found"):
                    await stream.feed(piece, last=last)
            result = await stream.feed("text")
            assert result.score == pytest.approx(plain.score("text").score, abs=ROUNDING)

    _run(test())


def test_an_error_of_a_stream_is_its_own(plain: Guard) -> None:
    async def test() -> None:
        async with AsyncGuard(plain) as guard, guard.stream() as bad, guard.stream() as good:
            results = await asyncio.gather(
                bad.feed("\ud800"), good.feed("text"), return_exceptions=True
            )
            assert isinstance(results[0], InputError)
            assert isinstance(results[1], StreamResult)

    _run(test())
