"""A guard for asyncio: calls are awaited, and those of all tasks are scored together."""

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from siren_runtime.errors import BackendError, BusyError, SirenError
from siren_runtime.guard import Guard
from siren_runtime.scoring.call import Call, Given, Text, passages_of, raised, trajectories_of
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.streaming.handles import Stream, Streams
from siren_runtime.streaming.result import StreamResult, TokenScore
from siren_runtime.text.deadline import Deadline
from siren_runtime.text.passage import Passage, make_passage
from siren_runtime.text.tokenizer import AT_ONCE
from siren_runtime.text.trajectory import Trajectory

from .dispatcher import Dispatcher
from .pending import PendingCall, Results
from .sharing import DEFAULT_SHARING, Run, Sharing, ignore

_READERS = 2  # threads that tokenize what is short; what is long has one, and holds up no other


class AsyncGuard:
    """Scores as a guard does, without blocking the event loop.

        async with AsyncGuard(Guard.load("minilm", threads=1)) as guard:
            result = await guard.score("…")
            async with guard.stream(prompt="…") as stream:
                async for result in stream.results(pieces):
                    …

    A task that is cancelled costs no engine run that has not begun, and its texts are not tokenized
    to their end. A score is that of `Guard.score` up to the rounding that another batch brings.
    """

    def __init__(
        self,
        guard: Guard,
        sharing: Sharing = DEFAULT_SHARING,
        on_run: Callable[[Run], None] = ignore,
    ) -> None:
        """Share `guard`, which stays its owner's to close; arguments as `Dispatcher`."""
        self.guard = guard
        self.dispatcher = Dispatcher(guard, sharing, on_run)
        self._readers = ThreadPoolExecutor(_READERS, "siren-read")
        self._long_reader = ThreadPoolExecutor(1, "siren-read-long")

    async def score(
        self,
        text: str | None = None,
        *,
        prompt: str | None = None,
        response: str | None = None,
        **settings: Any,
    ) -> ScoreResult:
        """Score one text, or a prompt and its response, as `Guard.score`.

        Args:
            settings: threshold, features, long_text, spans, deadline, cancel and order, as
                `Guard.score`.

        Raises:
            BusyError: too much waits already; nothing was scored.
            SirenError: as `Guard.score`.
        """

        def passages(call: Call) -> list[Passage | SirenError]:
            return [make_passage(text, prompt, response, max_bytes=call.limits.max_bytes)]

        is_short = _is_short([text, prompt, response])
        (result,) = await self._answer(passages, settings, is_short)
        if isinstance(result, SirenError):
            raise result
        return result

    async def score_batch(self, texts: Iterable[Text], **settings: Any) -> list[ScoreResult]:
        """Score many texts, as `Guard.score_batch`; settings and errors as `score`."""
        return raised(await self.score_each(texts, **settings))

    async def score_each(
        self, texts: Iterable[Text], **settings: Any
    ) -> list[ScoreResult | SirenError]:
        """Score many texts, as `Guard.score_each`; settings and errors as `score`."""

        def passages(call: Call) -> list[Passage | SirenError]:
            return passages_of(texts, "score_each", call)

        return await self._answer(passages, settings, _is_short(texts))

    async def score_each_trajectory(
        self, trajectories: Iterable[Any], **settings: Any
    ) -> list[ScoreResult | SirenError]:
        """Score what agents did, as `Guard.score_each_trajectory`; settings as `score`."""

        def given(_: Call) -> list[Trajectory | SirenError]:
            return trajectories_of(trajectories, "score_each_trajectory")

        return await self._answer(given, settings, _is_short(trajectories))

    def stream(self, prompt: str | None = None, **options: Any) -> "AsyncStream":
        """Return a stream over one growing text; entering it opens it.

        Args:
            prompt, options: as `Streams.open`: response_only, aggregation, span, threshold, rules.
        """
        return AsyncStream(self.dispatcher, prompt, options)

    async def close(self, *, drain: bool = True) -> None:
        """Take nothing more in, answer what waits (with errors, unless `drain`), and end."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: self.dispatcher.close(drain=drain))
        for readers in (self._readers, self._long_reader):
            readers.shutdown(wait=False)

    async def __aenter__(self) -> "AsyncGuard":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _answer(
        self,
        given: Callable[[Call], Sequence[Given | SirenError]],
        settings: dict[str, Any],
        is_short: bool,
    ) -> Results:
        gone = threading.Event()
        call = self.guard.call(**settings)
        call = replace(call, deadline=call.deadline.or_by(gone))
        try:
            with self.dispatcher.admitted():
                loop = asyncio.get_running_loop()
                pending = await loop.run_in_executor(
                    self._readers if is_short else self._long_reader,
                    lambda: PendingCall(self.guard, given(call), call),
                )
                self.dispatcher.submit(pending)
                return await asyncio.wrap_future(pending.future)
        except asyncio.CancelledError:
            gone.set()
            raise


def _is_short(given: Any) -> bool:
    """Whether what was given is tokenized in a moment: strings, in lists and objects, of a few
    thousand characters. What is neither may hold more.
    """
    found, left = [given], AT_ONCE
    while found and left > 0:
        value = found.pop()
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, list | tuple | Mapping) and len(value) < left:
            found += value.values() if isinstance(value, Mapping) else value
            left -= len(value)
        elif value is not None and not isinstance(value, int | float):
            return False
    return left > 0


class AsyncStream:
    """A session over one growing text, as `Stream`, that is awaited. `AsyncGuard.stream` makes it.

    Pieces are read in the order in which they are fed. Where a feed is cancelled its piece may or
    may not have been read, so the stream is closed.

    Attributes:
        verdict: of all that was fed: the first result that was harmful, else the last; None before
            the first. Feeding an empty text, which opens the stream and says nothing, has no part.
    """

    def __init__(self, dispatcher: Dispatcher, prompt: str | None, options: dict[str, Any]) -> None:
        self._dispatcher, self._prompt, self._options = dispatcher, prompt, options
        self._stream: Stream | None = None
        self.verdict: StreamResult | None = None

    async def __aenter__(self) -> "AsyncStream":
        """Open it.

        Raises:
            BusyError: as many streams as may be are open.
            InputError, BackendError: as `Streams.open`.
        """
        limit = self._dispatcher.sharing.max_streams

        def open_stream(streams: Streams) -> Stream:
            if len(streams) >= limit:
                raise BusyError(f"{limit} streams are open, as many as may be; try later", 1.0)
            return streams.open(self._prompt, **self._options)

        opening = self._dispatcher.with_streams(open_stream)
        try:
            self._stream = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_unused)
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._close()

    async def feed(
        self, text: str, *, last: bool = False, deadline: float | None = None
    ) -> StreamResult:
        """Add `text` and score all text so far, as `Stream.feed`."""
        gone = threading.Event()
        until = Deadline(deadline, gone)
        try:
            feed = self._dispatcher.feed(self._opened(), text, until, last=last)
            result = await asyncio.wrap_future(feed)
        except asyncio.CancelledError:
            gone.set()
            self._close()
            raise
        if (text or last) and not (self.verdict and self.verdict.is_harmful):
            self.verdict = result
        return result

    async def results(self, pieces: AsyncIterable[str]) -> AsyncIterator[StreamResult]:
        """Feed pieces as they come; yields the result of each."""
        async for piece in pieces:
            yield await self.feed(piece)

    async def scores(self) -> list[TokenScore]:
        """The entry of each token held, as `Stream.scores`."""
        stream = self._opened()
        found = self._dispatcher.with_streams(lambda _: stream.scores, stream)
        return await asyncio.wrap_future(found)

    def _close_unused(self, opening: "Future[Stream]") -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._dispatcher.discard(opening.result())

    def _opened(self) -> Stream:
        if self._stream is None:
            raise BackendError("the stream is closed, or was not opened: async with … as stream")
        return self._stream

    def _close(self) -> None:
        """Free it between two runs; nobody waits for that."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._dispatcher.discard(stream)
