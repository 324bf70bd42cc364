"""The guards that a server has by name: opened, warmed, exchanged while requests go on."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import msgspec

from siren_runtime.errors import BusyError, SirenError, UnreadableError
from siren_runtime.scoring.call import Text
from siren_runtime.scoring.result import ScoreResult
from siren_runtime.scoring.verdict import HeadJudge, Judge
from siren_runtime.serving.asynchronous import AsyncGuard, AsyncStream

from . import logs
from .errors import RefusedRequest, body_of, refused
from .metrics import Metrics
from .opening import open_guard, sharing_of
from .settings import Settings

_LOOK_S, _MEASURE_S = 0.1, 1.0


class Served:
    """One guard under its name."""

    def __init__(self, name: str, source: str, guard: AsyncGuard, metrics: Metrics) -> None:
        self.name, self.source, self.guard = name, source, guard
        self._metrics = metrics
        self.loaded = time.time()
        self.open_streams = 0
        self._holders = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep this guard open for who will ask it again, when another one takes its name."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1

    async def score_each(
        self, texts: list[Text], **settings: Any
    ) -> list[ScoreResult | SirenError]:
        """Score texts, and count the verdicts."""
        return self._counted(await self.guard.score_each(texts, **settings))

    async def score_trajectories(
        self, given: list[dict[str, Any]], **settings: Any
    ) -> list[ScoreResult | SirenError]:
        """Score what agents did, and count the verdicts."""
        return self._counted(await self.guard.score_each_trajectory(given, **settings))

    def _counted(self, results: list[ScoreResult | SirenError]) -> list[ScoreResult | SirenError]:
        for result in results:
            if isinstance(result, ScoreResult):
                self._metrics.count_verdict(self.name, result)
            elif isinstance(result, UnreadableError):
                self._metrics.count_unreadable(self.name)
        return results

    def told_error(self, error: SirenError) -> dict[str, Any]:
        """A text's error, in the place of its result; it is counted as a request's is."""
        refusal = refused(error)
        self._metrics.refusals.labels(refusal.code).inc()
        return {"error": msgspec.to_builtins(body_of(refusal).error)}

    async def score_all(self, texts: list[Text], **settings: Any) -> list[ScoreResult]:
        """Score texts of an interface that has no place for an error of one.

        Raises:
            SirenError: the first that a text has, which names its place if there are several.
        """
        good = []
        for place, result in enumerate(await self.score_each(texts, **settings)):
            if isinstance(result, SirenError):
                if len(texts) == 1:
                    raise result
                raise type(result)(f"texts[{place}]: {result}")
            good.append(result)
        return good

    @asynccontextmanager
    async def stream(self, prompt: str | None, **options: Any) -> AsyncIterator[AsyncStream]:
        """Open a stream, which keeps this guard open when another one takes its name; at its end
        its verdict is counted.
        """
        self.open_streams += 1
        self._metrics.streams.labels(self.name).inc()
        try:
            async with self.guard.stream(prompt, **options) as stream:
                try:
                    yield stream
                finally:
                    if stream.verdict is not None:
                        self._metrics.count_verdict(self.name, stream.verdict)
        finally:
            self.open_streams -= 1
            self._metrics.streams.labels(self.name).dec()

    def info(self) -> dict[str, Any]:
        """What it is: bundle, hashes, backend, versions."""
        guard = self.guard.guard
        return {
            "source": self.source,
            "backend": guard.backend,
            **told_decision(guard.judge),
            "loaded": self.loaded,
            "members": [
                {
                    "base_model": manifest.backbone.id,
                    "revision": manifest.backbone.revision,
                    "backbone_digest": manifest.backbone.digest,
                    "head_base_model": msgspec.to_builtins(manifest.backbone.named),
                    "precision": manifest.precision,
                    "max_length": manifest.text.max_length,
                    "streams": manifest.streams,
                    "created": manifest.created,
                    "versions": dict(manifest.versions),
                    "sha256": {name: file.sha256 for name, file in manifest.files.items()},
                }
                for manifest in guard.manifests
            ],
        }

    def measure(self) -> None:
        """Put what waits now into the metrics."""
        calls, tokens, pieces = self.guard.dispatcher.waiting
        self._metrics.calls.labels(self.name).set(calls)
        self._metrics.waiting_tokens.labels(self.name).set(tokens)
        self._metrics.waiting_pieces.labels(self.name).set(pieces)

    async def close(self) -> None:
        """Answer what was accepted, let streams and holders end, and free the engine."""
        while self.open_streams or self._holders:
            await asyncio.sleep(_LOOK_S)
        await self.guard.close()
        self.guard.guard.close()


def told_decision(judge: Judge, asked: float | None = None) -> dict[str, Any]:
    """By what a guard decides, as /info has it: threshold, tiers, and from which score spans of so
    many tokens count; of texts with a response, where it is something else.

    Args:
        asked: a threshold in place of its own, whatever the text; None is its own.
    """

    def told(head: HeadJudge) -> dict[str, Any]:
        threshold = head.threshold if asked is None else asked
        counts = judge.limits.spans_asked or judge.counts_spans(head)
        sizes = judge.limits.spans if counts else None
        own = {size: head.spans.get(size, head.threshold) for size in sizes or ()}
        return {
            "threshold": threshold,
            "tiers": {tier.name: tier.threshold for tier in head.tiers},
            "spans": {str(size): head.harmful_from(at, threshold) for size, at in own.items()},
        }

    head = judge.primary
    has_own = head.responses is not None and asked is None
    return {**told(head), "responses": told(head.of_text(has_response=True)) if has_own else None}


Check = Callable[[Served], Awaitable[None]]


class Guards:
    """The guards by name; the first is the one for requests that name none."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._served: dict[str, Served] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self.draining = False  # from SIGTERM on
        self.ending = asyncio.Event()  # from when the server listens no more
        self.failure: str | None = None  # why the server does not start

    def check_ready(self) -> None:
        """See that all have scored something, and the server goes on.

        Raises:
            RefusedRequest: one has not, or the server ends.
        """
        if self.draining or len(self._served) < len(self._settings.guards):
            raise RefusedRequest(503, "not_ready", "not ready: a guard is being loaded, or it ends")

    def names(self) -> list[str]:
        """Their names, the first one first."""
        return list(self._settings.guards)

    def all(self) -> list[Served]:
        """Those that are open."""
        return list(self._served.values())

    def get(self, name: str | None) -> Served:
        """The guard of a name; the first one without.

        Raises:
            RefusedRequest: there is none of it, or it is not open yet.
        """
        if not self._settings.guards:
            raise RefusedRequest(404, "model_not_found", "no guard here, only a generator")
        wanted = self.names()[0] if name is None else name
        if wanted not in self._settings.guards:
            raise RefusedRequest(
                404, "model_not_found", f"no guard {wanted!r} here, only {', '.join(self.names())}"
            )
        if wanted not in self._served:
            raise RefusedRequest(503, "loading", f"the guard {wanted!r} is being loaded")
        return self._served[wanted]

    def refusal(self) -> BusyError | None:
        """Why a request for scores is refused before it is read; None where a guard takes calls."""
        refusals = [served.guard.dispatcher.refusal() for served in self._served.values()]
        return None if None in refusals else next(iter(refusals), None)

    async def load(self, check: Check | None = None) -> None:
        """Open every guard anew, each warmed by a score, and let all take their names' places.

        Those before answer what they accepted, and are closed.

        Args:
            check: raises where the first guard cannot do what it is there for.

        Raises:
            SirenError: one cannot be opened, which it names; all stay as they were.
        """
        async with self._reloading:
            fresh: dict[str, Served] = {}
            before = fresh  # to be closed
            try:
                for name, source in self._settings.guards.items():
                    fresh[name] = await self._opened(name, source)
                if check is not None:
                    await check(fresh[self.names()[0]])
                before, self._served = self._served, fresh
            finally:
                for served in before.values():
                    self._close_later(served)

    async def _opened(self, name: str, source: str) -> Served:
        started = time.monotonic()
        opening = partial(open_guard, source, self._settings)
        try:
            guard = await asyncio.get_running_loop().run_in_executor(None, opening)
        except SirenError as error:
            raise type(error)(f"the guard {name!r}: {error}") from error
        count: Callable[[Any], None] = partial(self._metrics.count_run, name)
        shared = AsyncGuard(guard, sharing_of(self._settings), count)
        logs.event("guard loaded", guard=name, seconds=round(time.monotonic() - started, 3))
        return Served(name, source, shared, self._metrics)

    async def watch(self) -> None:
        """Put what waits into the metrics every second, for ever: of several workers another one
        may be asked.
        """
        while True:
            await asyncio.sleep(_MEASURE_S)
            for served in self.all():
                served.measure()

    async def close(self) -> None:
        """Close all of them."""
        for served in self._served.values():
            self._close_later(served)
        await asyncio.gather(*self._closing)
        self._served.clear()

    def _close_later(self, served: Served) -> None:
        task = asyncio.get_running_loop().create_task(served.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
