"""Streams: a WebSocket, or a session that requests feed and server-sent events tell of."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from litestar import WebSocket, delete, get, post, websocket
from litestar.datastructures import State
from litestar.exceptions import WebSocketDisconnect
from litestar.response import ServerSentEvent, ServerSentEventMessage

from siren_runtime.errors import InputError, SirenError
from siren_serve.bodies import check_keys
from siren_serve.errors import RefusedRequest, body_of, refused, why_not_json
from siren_serve.inbox import Inbox
from siren_serve.streams import OpenRequest, fed

_PROTOCOL = "siren"  # the only one, for browsers that must offer some
_ENDED, _POLICY, _FAILED, _RESTART, _LATER = 1000, 1008, 1011, 1012, 1013

_T = TypeVar("_T")


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next piece of a text; with `end` it is the last, and the stream ends after it."""

    text: str | None = None
    end: bool = False


class FeedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next piece of a text; `last`: the text ends with it, as `Stream.feed`."""

    text: str
    last: bool = False


@websocket("/v1/stream")
async def stream(socket: WebSocket[Any, Any, Any], state: State) -> None:
    """Open a stream with the first message, an `OpenRequest`; then each `Piece` is answered.

    Messages from here have a `type`: opened, result, or error, after which it is closed. Where the
    server ends it is closed behind the result of the piece that is being read.
    """
    offered = socket.scope["subprotocols"]
    await socket.accept(subprotocols=_PROTOCOL if _PROTOCOL in offered else None)
    try:
        async with Inbox(socket, state.guards.ending) as inbox:
            code = await _serve(socket, inbox, state)
    except WebSocketDisconnect:
        return
    except (asyncio.TimeoutError, RefusedRequest, SirenError, msgspec.DecodeError) as error:
        if isinstance(error, asyncio.TimeoutError):
            error = RefusedRequest(408, "stream_timeout", "the stream's time is up")
        if isinstance(error, msgspec.DecodeError):
            error = InputError(f"the message is not what is expected: {why_not_json(error)}")
        refusal = refused(error)
        state.metrics.refusals.labels(refusal.code).inc()
        code = _LATER if refusal.status in (429, 503) else _FAILED
        code = _POLICY if refusal.status in (400, 404, 408, 422) else code
        with suppress(WebSocketDisconnect):
            await _send(socket, {"type": "error", **msgspec.to_builtins(body_of(refusal))})
    with suppress(Exception):  # it may be closed already
        await socket.close(code)


async def _serve(socket: WebSocket[Any, Any, Any], inbox: Inbox, state: State) -> int:
    """Answer each message.

    Returns:
        The code to close with: the stream's end has come, or the server's.
    """
    settings, end = state.settings, time.monotonic() + state.settings.stream_s

    async def received(kind: type[_T]) -> _T | None:
        left = min(settings.stream_idle_s, end - time.monotonic())
        text = await inbox.next(max(left, 0))
        return None if text is None else _decoded(text, kind)

    if (asked := await received(OpenRequest)) is None:
        return _RESTART
    served = state.guards.get(asked.model)
    async with served.stream(asked.prompt, **asked.options(served)) as opened:
        await _send(socket, {"type": "opened", "model": served.name})
        while (piece := await received(Piece)) is not None:
            if piece.text is not None or piece.end:
                text, seconds = piece.text or "", settings.timeout_s
                result = await fed(opened, text, seconds, last=piece.end)
                await _send(socket, {"type": "result", **result.to_dict()})
            if piece.end:
                return _ENDED
    return _RESTART


def _decoded(text: str, kind: type[_T]) -> _T:
    if not text:
        raise InputError("a message is a text frame of JSON; this one is binary, or empty")
    message = msgspec.json.decode(text, type=kind)
    check_keys(text)
    return message


async def _send(socket: WebSocket[Any, Any, Any], message: dict[str, Any]) -> None:
    await socket.send_text(msgspec.json.encode(message).decode())


@post("/v1/streams", status_code=201, tags=["streams"])
async def open_session(data: OpenRequest, state: State) -> dict[str, Any]:
    """Open a session; it ends when it is deleted, or when nothing comes for a while."""
    session = await state.sessions.open(data)
    return {
        "id": session.id,
        "model": session.served.name,
        "idle_s": state.settings.stream_idle_s,
    }


@post("/v1/streams/{name:str}", status_code=200, tags=["streams"])
async def feed(name: str, data: FeedRequest, state: State) -> dict[str, Any]:
    """Feed a session; the answer is the verdict on all text so far."""
    result: dict[str, Any] = await state.sessions.feed(name, data.text, last=data.last)
    return result


@get("/v1/streams/{name:str}/events", tags=["streams"])
async def events(name: str, state: State) -> ServerSentEvent:
    """Tell of each verdict as a server-sent event `result`, and of the `end`."""
    session = state.sessions.get(name)

    async def messages() -> AsyncIterator[ServerSentEventMessage]:
        async for kind, data in session.events(state.guards):
            yield ServerSentEventMessage(event=kind, data=msgspec.json.encode(data).decode())

    return ServerSentEvent(messages())


@delete("/v1/streams/{name:str}", tags=["streams"])
async def end(name: str, state: State) -> None:
    """End a session."""
    state.sessions.get(name)
    await state.sessions.end(name, "it was deleted")


ROUTES = [stream, open_session, feed, events, end]
