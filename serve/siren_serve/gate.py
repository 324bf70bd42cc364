"""What every request passes: keys, counting, logging, and the end of one whose caller has gone."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from . import logs
from .bodies import json_length
from .errors import RefusedRequest, raw_response, refused
from .guards import Guards
from .keys import Keys
from .metrics import Metrics
from .settings import Settings
from .values import Values

# ASGI's own shapes: https://asgi.readthedocs.io/en/latest/specs/www.html
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

_OPEN = {"/", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
# Where all that is asked for is scores: refused at once while no guard takes a call.
_SCORES = {"/v1/score", "/v1/moderations", "/v1/trajectories", "/predict", "/classify"}
_GONE = 499  # the client closed the connection, as nginx has it


class Gate:
    """An ASGI application around another."""

    def __init__(
        self, app: Application, settings: Settings, keys: Keys, guards: Guards, metrics: Metrics
    ) -> None:
        self._app, self._keys, self.guards = app, keys, guards
        self.settings, self.metrics = settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._telling(send))
            return
        if scope["path"] not in _OPEN and not self._keys.open(list(scope["headers"])):
            error = RefusedRequest(
                401,
                "unauthorized",
                "no valid API key: send Authorization: Bearer KEY, or X-API-Key",
                {"WWW-Authenticate": "Bearer"},
            )
            await self._refuse(error, scope, send)
        elif scope["type"] == "websocket":
            await self._pass_socket(scope, receive, send)
        else:
            if scope["method"] == "HEAD" and scope["path"] in _OPEN:
                scope = {**scope, "method": "GET"}  # of which uvicorn sends no body
            app = self._app if scope["path"] not in _SCORES else self._if_there_is_room
            await _Exchange(self.guards, self.metrics).run(app, scope, receive, send)

    async def _pass_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a WebSocket on, and log it when it has ended."""
        started, status = time.monotonic(), 403

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            _log(scope, status, time.monotonic() - started)

    async def _if_there_is_room(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request for scores on, or refuse it without reading its body."""
        if (busy := self.guards.refusal()) is None:
            await self._app(scope, receive, send)
            return
        scope["path_template"] = scope["path"]  # as the routes have it
        await self._refuse(refused(busy), scope, send)

    async def _refuse(self, error: RefusedRequest, scope: Scope, send: Send) -> None:
        self.metrics.refusals.labels(error.code).inc()
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
            return
        headers, body = raw_response(error, scope["path"])
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _telling(self, send: Send) -> Send:
        """Say why the server does not start in one line, in place of a traceback."""

        async def sending(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self.guards.failure is not None:
                message["message"] = self.guards.failure
            await send(message)

        return sending


class _Exchange:
    """One request and its answer."""

    def __init__(self, guards: Guards, metrics: Metrics) -> None:
        self._guards, self._metrics = guards, metrics
        self._status = 0
        self._answered = False
        self._values: Values | None = None  # of the body, once it comes
        self._gone: asyncio.Task[Message] | None = None

    async def run(self, app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; a client that goes ends it."""
        started, task = time.monotonic(), asyncio.current_task()

        async def watched() -> Message:
            message = await receive()
            if not self._answered and task is not None:
                self._status = _GONE
                task.cancel()
            return message

        async def receiving() -> Message:
            if self._gone is not None:
                return await asyncio.shield(self._gone)
            message = await receive()
            if message["type"] == "http.disconnect" and not self._answered:
                self._status = _GONE  # in the midst of its body
                raise asyncio.CancelledError
            if message["type"] == "http.request":
                self._values = self._values or Values(json_length(scope))
                self._values.add(message.get("body", b""))
            if message["type"] == "http.request" and not message.get("more_body"):
                self._gone = asyncio.get_running_loop().create_task(watched())
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                if self._guards.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif not message.get("more_body"):
                self._answered = True
            await send(message)

        try:
            await app(scope, receiving, sending)
        except asyncio.CancelledError:
            if self._status != _GONE:
                raise
        finally:
            if self._gone is not None:
                self._gone.cancel()
            self._count(scope, time.monotonic() - started)

    def _count(self, scope: Scope, seconds: float) -> None:
        route = _route(scope)
        self._metrics.requests.labels(route, str(self._status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        _log(scope, self._status, seconds)


def _route(scope: Scope) -> str:
    """The template of a path, which is no text of a caller's."""
    return scope.get("path_template") or "unmatched"


def _log(scope: Scope, status: int, seconds: float) -> None:
    """Write a line of the access log."""
    client = scope.get("client")
    fields = {
        "method": scope.get("method", "WEBSOCKET"),
        "route": _route(scope),
        "status": status,
        "ms": round(1000 * seconds, 2),
        "client": client[0] if client else None,
    }
    logs.access.info("request", extra={"fields": fields})
