"""The upstream's answer, whole or as a stream, as it may go out."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import islice
from typing import Any

import httpx
import msgspec

from siren_runtime.errors import SirenError
from siren_runtime.serving.asynchronous import AsyncStream
from siren_serve.errors import RefusedRequest
from siren_serve.openai_form import FILTERED

from .calls import Call
from .choice import Choice, Chunk
from .events import EventDecoder
from .extras import NUMBERS, without_texts
from .policy import Policy, Unscored, Verdict, worst_of
from .texts import said_by, without_alternatives
from .upstream import whole_of

_PAUSE_S = 0.25  # of the upstream, after which what was gathered is read
_DONE = b"[DONE]"


class Done:
    """The end that a stream says itself."""


async def whole_answer(response: httpx.Response, call: Call, policy: Policy) -> Chunk:
    """An answer that came at once, each choice scored behind its prompt.

    Raises:
        RefusedRequest: it is not understood, or has no verdict.
    """
    answer = _decoded(await whole_of(response))
    _check_worked(answer)
    choices = _choices_of(answer, call, policy)
    if not choices:
        raise not_understood("an answer without choices")
    said = [_said_by(choice, policy) for choice in choices]
    contexts = [call.context(choice["index"]) for choice in choices]
    pairs = [
        (before, text) for before, (texts, _) in zip(contexts, said, strict=True) for text in texts
    ]
    scored = iter(await policy.score("answer", pairs))
    verdicts = [worst_of([unread, *islice(scored, len(texts))]) for texts, unread in said]
    read = [_judged(*pair, policy) for pair in zip(choices, verdicts, strict=True)]
    return {**without_texts(answer), "choices": read}


def _said_by(choice: Chunk, policy: Policy) -> tuple[list[str], Unscored | None]:
    try:
        return said_by(choice), None
    except RefusedRequest as error:
        return [], policy.no_verdict("answer", error)


def _judged(choice: Chunk, verdict: Verdict | None, policy: Policy) -> Chunk:
    if verdict is not None and not policy.may_pass(verdict):
        empty: Chunk = {"message": {"role": "assistant", "content": None}}
        empty = {"text": ""} if "text" in choice else empty
        return {"index": choice["index"], **empty, "logprobs": None, "finish_reason": FILTERED}
    annotation = policy.annotation(verdict)
    return choice if annotation is None else {**choice, "siren": annotation}


class StreamedAnswer:
    """An answer that comes in chunks. As a context it owns the guard's streams, one a choice."""

    def __init__(self, call: Call, policy: Policy) -> None:
        self._call, self._policy = call, policy
        self._choices: list[Choice] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "StreamedAnswer":
        """Begin to open the streams and to read the prompts in them, while the upstream works."""
        self._opening = asyncio.ensure_future(self._open())
        self._tasks.append(self._opening)
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:  # a client that goes now must not leave the streams open
            await self._stack.aclose()

    async def _open(self) -> None:
        for index in range(self._call.choices):
            opened = partial(self._opened, self._call.context(index))
            self._choices.append(Choice(await opened(), opened, self._policy))

    async def _opened(self, prompt: str) -> AsyncStream | Unscored:
        try:
            stream = await self._stack.enter_async_context(self._policy.stream(prompt))
        except SirenError as error:
            return self._policy.no_verdict("answer", error)
        if self._policy.reads_ahead(prompt):
            self._tasks.append(asyncio.ensure_future(_warm(stream)))
        return stream

    async def chunks(self, response: httpx.Response) -> AsyncGenerator[Chunk | Done, None]:
        """Yield what may go out, until all choices have ended.

        Raises:
            RefusedRequest: as `whole_answer`, or a stream could not be opened.
        """
        await self._opening
        events = _events(response)
        coming: asyncio.Future[bytes] | None = None
        try:
            while not all(choice.cut for choice in self._choices):
                coming = coming or asyncio.ensure_future(anext(events))
                waits = any(choice.waits for choice in self._choices)
                await asyncio.wait({coming}, timeout=_PAUSE_S if waits else None)
                if not coming.done():
                    for chunk in await self._read_on():
                        yield chunk
                    continue
                data, coming = _result(coming), None
                if data is None or data == _DONE:
                    for chunk in await self._read_on(to_end=True):
                        yield chunk
                    self._check_ended()
                    if data is None:
                        return
                    break
                for chunk in await self._read(_decoded(data)):
                    yield chunk
            yield Done()
            if coming is None and not all(choice.cut for choice in self._choices):
                coming = asyncio.ensure_future(anext(events))  # an end keeps the connection alive
                await asyncio.wait({coming}, timeout=_PAUSE_S)
        finally:
            if coming is not None:
                coming.cancel()
                with suppress(Exception, asyncio.CancelledError):
                    await coming
            await events.aclose()

    def _check_ended(self) -> None:
        """Refuse an end in the midst of a choice: who asked would take its beginning for all.

        Some servers give one choice, whatever number was asked for.
        """
        ended = [choice.cut or choice.finished for choice in self._choices if choice.begun]
        if not ended or not all(ended):
            raise RefusedRequest(502, "upstream_failed", "the upstream ended before its answer did")

    async def _read(self, chunk: Chunk) -> list[Chunk]:
        """Let each choice of a chunk have its own; one without any passes."""
        _check_worked(chunk)
        choices, chunk = _choices_of(chunk, self._call, self._policy), without_texts(chunk)
        if not choices:
            return [{**chunk, "choices": []}]
        going = []
        for choice in choices:
            reader = self._choices[choice["index"]]
            if not reader.cut:
                going += await reader.take({**chunk, "choices": [choice]})
        return going

    async def _read_on(self, *, to_end: bool = False) -> list[Chunk]:
        """Read what was gathered, and at the end let go what is held."""
        going = []
        for choice in self._choices:
            if not choice.cut and (to_end or choice.waits):
                going += await choice.read(to_end=to_end)
        return going


async def _warm(stream: AsyncStream) -> None:
    with suppress(Exception):  # the first piece's to tell
        await stream.feed("")


async def _events(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    decoder = EventDecoder()
    async for data in response.aiter_bytes():
        for event in decoder.feed(data):
            if event.name == b"error":
                raise _failed()
            if event.data:
                yield event.data


def _result(coming: "asyncio.Future[bytes]") -> bytes | None:
    try:
        return coming.result()
    except StopAsyncIteration:
        return None


def _decoded(data: bytes) -> Chunk:
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise not_understood("what is no JSON") from None
    if not isinstance(decoded, dict):
        raise not_understood("JSON that is no object")
    return decoded


def _check_worked(answer: Chunk) -> None:
    """Refuse what tells of an error, in a form that is known or in one that says nothing else."""
    says = answer.keys() & {"choices", *NUMBERS}
    if answer.get("error") or answer.get("object") == "error" or not says:
        raise _failed()


def _failed() -> RefusedRequest:
    return RefusedRequest(502, "upstream_failed", "the upstream failed while it answered")


def _choices_of(chunk: Chunk, call: Call, policy: Policy) -> list[Chunk]:
    choices = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        raise not_understood("choices that are no list of objects")
    numbered = [{**choice, "index": choice.get("index", 0)} for choice in choices]
    for choice in numbered:
        if not isinstance(choice["index"], int) or not 0 <= choice["index"] < call.choices:
            raise not_understood("a choice that was not asked for")
    return [without_alternatives(c) for c in numbered] if policy.blocks else numbered


def not_understood(what: str) -> RefusedRequest:
    """The refusal of an answer that is not in OpenAI's form."""
    return RefusedRequest(502, "upstream_not_understood", f"the upstream sent {what}")
