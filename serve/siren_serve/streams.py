"""Sessions over growing texts that live longer than one request."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from secrets import token_urlsafe
from typing import Annotated, Any

import msgspec

from siren_runtime.bundle.types import Probability
from siren_runtime.errors import BusyError, SirenError
from siren_runtime.serving.asynchronous import AsyncStream
from siren_runtime.streaming.aggregation import AggregationName
from siren_runtime.streaming.decision import Hysteresis, Patience, Rule, Schedule
from siren_runtime.streaming.result import StreamResult

from .errors import RefusedRequest
from .guards import Guards, Served
from .settings import Settings

_KEPT = 256  # results that a reader of events may be behind
_LOOK_S = 0.5


class _Rule(msgspec.Struct, frozen=True, tag_field="rule"):
    """What tells rules apart in JSON."""


class PatienceRule(_Rule, frozen=True, forbid_unknown_fields=True, tag="patience"):
    """`Patience`: `k` of the last `n` scores at `threshold` or over."""

    k: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    n: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    threshold: Probability

    def made(self) -> Rule:
        """The rule."""
        return Patience(self.k, self.n, self.threshold)


class HysteresisRule(_Rule, frozen=True, forbid_unknown_fields=True, tag="hysteresis"):
    """`Hysteresis`: from `on` until below `off`."""

    on: Probability
    off: Probability

    def made(self) -> Rule:
        """The rule."""
        return Hysteresis(self.on, self.off)


class ScheduleRule(_Rule, frozen=True, forbid_unknown_fields=True, tag="schedule"):
    """`Schedule`: steps of a position and the threshold from it on."""

    steps: Annotated[list[tuple[int, Probability]], msgspec.Meta(max_length=64)]

    def made(self) -> Rule:
        """The rule."""
        return Schedule(tuple(self.steps))


class OpenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to open a stream; as `Guard.stream`. The guard's tiers are rules too."""

    prompt: str | None = None
    response_only: bool = False
    aggregation: AggregationName = "mean"
    span: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 64
    threshold: Probability | None = None
    rules: Annotated[
        list[PatienceRule | HysteresisRule | ScheduleRule], msgspec.Meta(max_length=16)
    ] = []  # each is asked at every token
    model: str | None = None

    def options(self, served: Served) -> dict[str, Any]:
        """Arguments of `AsyncGuard.stream`."""
        tiers = served.guard.guard.tiers_of(self.prompt)
        return {
            "response_only": self.response_only,
            "aggregation": self.aggregation,
            "span": self.span,
            "threshold": self.threshold,
            "rules": (*(rule.made() for rule in self.rules), *tiers),
        }


async def fed(stream: AsyncStream, text: str, timeout: float, *, last: bool) -> StreamResult:
    """Feed a piece, the last one or not, and await its verdict for so many seconds.

    Raises:
        RefusedRequest: there is none by then; the stream is closed.
        SirenError: as `AsyncStream.feed`.
    """
    try:
        return await asyncio.wait_for(stream.feed(text, last=last), timeout)
    except asyncio.TimeoutError:
        raise RefusedRequest(504, "timeout", "no verdict in time; the stream ended") from None


class Session:
    """A stream that is fed by one request and read by others."""

    def __init__(self, served: Served, stream: AsyncStream, owner: AsyncExitStack) -> None:
        """Begin with a stream that is open, which `owner` closes."""
        self.id = token_urlsafe(16)
        self.served = served
        self.begun = self.used = time.monotonic()
        self._stream, self._owner = stream, owner
        self._results: list[dict[str, Any]] = []
        self._count = 0
        self._ended: str | None = None
        self._changed = asyncio.Condition()

    async def feed(self, text: str, timeout: float, *, last: bool) -> dict[str, Any]:
        """Feed a piece, the last one or not, and tell those who read events."""
        self.used = time.monotonic()
        result = await fed(self._stream, text, timeout, last=last)
        self.used = time.monotonic()
        async with self._changed:
            self._results = [*self._results, result.to_dict()][-_KEPT:]
            self._count += 1
            self._changed.notify_all()
        return result.to_dict()

    async def events(self, guards: Guards) -> AsyncIterator[tuple[str, Any]]:
        """Yield ("result", …) of each feed from those kept on, and ("end", why)."""
        seen = self._count - len(self._results)
        while True:
            async with self._changed:
                while seen == self._count and self._ended is None and not guards.draining:
                    with suppress(asyncio.TimeoutError):  # to see whether the server ends
                        await asyncio.wait_for(self._changed.wait(), _LOOK_S)
                missed = self._count - seen
                results = self._results[len(self._results) - missed :] if missed else []
                lost, seen = missed - len(results), self._count
                ended = self._ended or ("the server ends" if guards.draining else None)
            if lost > 0:
                yield "lost", {"results": lost}
            for result in results:
                yield "result", result
            if ended is not None and seen == self._count:
                yield "end", {"why": ended}
                return

    async def end(self, why: str) -> None:
        """Free the stream, and tell those who read events."""
        if self._ended is None:
            self._ended = why
            await self._owner.aclose()  # waits for nobody, so that who leaves now leaves none open
        async with self._changed:
            self._changed.notify_all()


class Sessions:
    """Those that are open. They are bounded as streams are, and end when nothing comes."""

    def __init__(self, settings: Settings, guards: Guards) -> None:
        self._settings, self._guards = settings, guards
        self._open: dict[str, Session] = {}
        self._opening = 0  # whose time has not begun

    async def open(self, request: OpenRequest) -> Session:
        """Open one.

        Raises:
            RefusedRequest: the server has several workers, so that the next request may reach one
                that does not know it.
            SirenError: as `AsyncGuard.stream`.
        """
        if self._settings.workers > 1:
            raise RefusedRequest(
                501,
                "one_worker_only",
                "with several workers a session must stay in one connection: use the WebSocket "
                "/v1/stream, or serve with --workers 1",
            )
        count = len(self._open) + self._opening
        if count >= self._settings.max_streams:
            raise BusyError(f"{count} streams are open, as many as may be", 1.0)
        served = self._guards.get(request.model)
        opened = served.stream(request.prompt, **request.options(served))
        self._opening += 1
        try:
            async with AsyncExitStack() as stack:
                stream = await stack.enter_async_context(opened)
                session = Session(served, stream, stack.pop_all())
        finally:
            self._opening -= 1
        self._open[session.id] = session
        return session

    def get(self, name: str) -> Session:
        """The session of an id.

        Raises:
            RefusedRequest: there is none, or it ended.
        """
        if name not in self._open:
            raise RefusedRequest(404, "no_such_stream", "no such stream, or it has ended")
        return self._open[name]

    async def feed(self, name: str, text: str, *, last: bool) -> dict[str, Any]:
        """Feed a session a piece, the last one or not; one that fails has ended."""
        session = self.get(name)
        try:
            return await session.feed(text, self._settings.timeout_s, last=last)
        except (SirenError, RefusedRequest, asyncio.CancelledError):
            await self.end(name, "a feed failed")
            raise

    async def end(self, name: str, why: str) -> None:
        """End one."""
        session = self._open.pop(name, None)
        if session is not None:
            await session.end(why)

    async def watch(self) -> None:
        """End those whose time is up, for ever."""
        settings = self._settings
        while True:
            await asyncio.sleep(min(_LOOK_S, settings.stream_idle_s / 4))
            now = time.monotonic()
            for session in list(self._open.values()):
                if now - session.used > settings.stream_idle_s:
                    await self.end(session.id, f"nothing came for {settings.stream_idle_s:g} s")
                elif now - session.begun > settings.stream_s:
                    await self.end(session.id, f"{settings.stream_s:g} s are over")

    async def close(self) -> None:
        """End all."""
        for name in list(self._open):
            await self.end(name, "the server ends")
