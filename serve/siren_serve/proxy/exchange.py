"""One request to the upstream, from its body to the end of its answer."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from siren_runtime.errors import SirenError
from siren_serve.errors import RefusedRequest, body_of, refused
from siren_serve.metrics import Metrics
from siren_serve.openai_form import DONE, FILTERED, event

from .answers import Done, StreamedAnswer, not_understood, whole_answer
from .calls import Call
from .choice import Chunk
from .policy import Policy, Verdict, worst_of
from .upstream import Upstream, UpstreamRefusal, passed_headers

_AHEAD = 16  # chunks that are ready before they can be sent
_STREAM = "text/event-stream"


@dataclass(frozen=True)
class Head:
    """How an answer comes."""

    streamed: bool
    headers: dict[str, str]


Item = Head | Chunk | Done


class Exchange:
    """A call that is scored, answered by the upstream, and read as it is answered."""

    def __init__(
        self,
        call: Call,
        headers: list[tuple[bytes, bytes]],
        upstream: Upstream,
        policy: Policy,
        metrics: Metrics,
    ) -> None:
        self._call, self._headers = call, headers
        self._upstream, self._policy, self._metrics = upstream, policy, metrics
        self._started = time.monotonic()
        self._has_begun = False
        self._outcome = "gone"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, as ASGI has it. Whatever ends it ends the upstream's request too."""
        try:
            with self._policy.served.held():  # the answer may come long after its prompt
                await self._answer(send)
        except UpstreamRefusal:
            self._outcome = "upstream_refused"
            raise
        except (RefusedRequest, SirenError) as error:
            refusal = refused(error)
            self._outcome = refusal.code
            if not self._has_begun:
                raise
            self._metrics.refusals.labels(refusal.code).inc()
            # OpenAI's client raises it. No [DONE] follows: the answer is not whole.
            last = event(body_of(refusal))
            await send({"type": "http.response.body", "body": last, "more_body": False})
        except Exception:
            self._outcome = "internal"
            raise
        finally:
            self._metrics.proxied.labels(self._outcome).inc()

    async def _answer(self, send: Any) -> None:
        scoring = asyncio.ensure_future(self._scored_prompts())
        try:
            if self._policy.settings.prompt == "before":
                await self._prompt_passes(scoring)
            async with _ahead(self._items()) as items:
                verdicts = await self._prompt_passes(scoring)
                await self._pass_on(items, verdicts, send)
        except UpstreamRefusal as refusal:
            raise await self._told(refusal) from None
        finally:
            scoring.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await scoring

    async def _scored_prompts(self) -> list[Verdict]:
        if self._call.unread is not None:
            return [self._policy.no_verdict("prompt", self._call.unread)]
        return await self._policy.score("prompt", self._call.prompts)

    async def _prompt_passes(self, scoring: "asyncio.Future[list[Verdict]]") -> list[Verdict]:
        verdicts = await asyncio.shield(scoring)
        if not all(map(self._policy.may_pass, verdicts)):
            raise RefusedRequest(400, FILTERED, "the prompt was blocked as harmful")
        return verdicts

    async def _items(self) -> AsyncGenerator[Item, None]:
        """The answer as it may go out: its head, then its chunks."""
        call, asked = self._call, self._upstream.asked
        streams = call.body.get("stream") is True
        path, body = f"/{call.kind}", call.body
        if not streams:
            async with asked("POST", path, self._headers, body) as response:
                self._metrics.upstream_seconds.observe(time.monotonic() - self._started)
                yield Head(False, passed_headers(response))
                yield await whole_answer(response, call, self._policy)
            return
        async with (
            StreamedAnswer(call, self._policy) as answer,
            asked("POST", path, self._headers, body) as response,
        ):
            self._metrics.upstream_seconds.observe(time.monotonic() - self._started)
            if not response.headers.get("content-type", "").lower().startswith(_STREAM):
                raise not_understood("no stream, where one was asked for")
            yield Head(True, passed_headers(response))
            async with aclosing(answer.chunks(response)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _pass_on(
        self, items: AsyncIterator[Item], verdicts: list[Verdict], send: Any
    ) -> None:
        head = await anext(items)
        assert isinstance(head, Head)
        first = await anext(items, None)  # an error before any text is a status, not an event
        self._metrics.first_seconds.observe(time.monotonic() - self._started)
        first = self._with_prompt(first, verdicts)
        if not head.streamed:
            headers = {"content-type": "application/json", **head.headers}
            await _send(send, 200, headers, msgspec.json.encode(first))
            self._outcome = "answered"
            return
        headers = {"content-type": f"{_STREAM}; charset=utf-8", "cache-control": "no-cache"}
        await send(_start(200, {**headers, **head.headers}))
        self._has_begun = True
        item: Item | None = first
        while item is not None:
            data = DONE if isinstance(item, Done) else event(item)
            await send({"type": "http.response.body", "body": data, "more_body": True})
            item = await anext(items, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._outcome = "answered"

    async def _told(self, refusal: UpstreamRefusal) -> UpstreamRefusal:
        """The upstream's error as it may go out. Its text may quote the model's, so it is read as
        an answer is; the status, by which clients go, stays whatever comes of that.
        """
        contexts = dict.fromkeys(self._call.contexts) if refusal.text else {}
        try:
            scored = await self._policy.score("answer", [(c, refusal.text) for c in contexts])
        except RefusedRequest as error:
            self._metrics.refusals.labels(error.code).inc()  # the status stays the upstream's
            return refusal.without_text()
        verdict = worst_of(scored)
        if verdict is not None and not self._policy.may_pass(verdict):
            return refusal.without_text()
        annotation = self._policy.annotation(verdict)
        beside = {} if annotation is None else {"siren": annotation}
        return UpstreamRefusal(refusal.status, refusal.headers, {**refusal.error, **beside})

    def _with_prompt(self, item: Item | None, verdicts: list[Verdict]) -> Item | None:
        """The first of an answer, with what there is to say of the prompt."""
        annotation = self._policy.annotation(worst_of(verdicts))
        if not isinstance(item, dict) or annotation is None:
            return item
        return {**item, "siren": {"prompt": annotation}}


@asynccontextmanager
async def _ahead(items: AsyncGenerator[Item, None]) -> AsyncIterator[AsyncIterator[Item]]:
    """Let items be made in a task of their own, some ahead of who reads them; it ends with them."""
    queue: asyncio.Queue[Item | Exception | None] = asyncio.Queue(_AHEAD)

    async def make() -> None:
        try:
            async for item in items:
                await queue.put(item)
            await queue.put(None)
        except Exception as error:  # the reader's to see
            await queue.put(error)

    async def read() -> AsyncIterator[Item]:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    task = asyncio.ensure_future(make())
    try:
        yield read()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await items.aclose()


def _start(status: int, headers: dict[str, str]) -> dict[str, Any]:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}


async def _send(send: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    await send(_start(status, {**headers, "content-length": str(len(body))}))
    await send({"type": "http.response.body", "body": body, "more_body": False})
