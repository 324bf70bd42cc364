"""Connections: how many there may be, how long a request may take to come, an answer to go."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import RefusedRequest, raw_response
from .gate import Gate

# When the server ends, a request may be on its way over a connection that it just took.
_ON_ITS_WAY_S = 0.5
_LARGEST_HEAD = 64 << 10  # bytes of a request's line and headers, which httptools does not bound


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the bounds of the application's settings.

    A connection over `max_connections` is answered with 503 and closed. Where the headers of a
    request, from the connection or the first byte on, or then its body, have not come within
    `body_timeout_s`, it is answered with 408, unless it has its answer, and closed; with 431, where
    the headers have come to 64 KiB and do not end. One whose client has read nothing of what waits
    to be sent for `send_timeout_s` is closed, be it the end of an answer, or the midst of one that
    waits for the client. When the server ends, what reaches it over an open
    connection within a moment is still answered, and a WebSocket is closed by the application.
    """

    _timer: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _heads = 0  # that have ended
    _head_bytes = 0  # of the one that has not
    _in_head = True

    @property
    def _gate(self) -> Gate:
        assert isinstance(self.app, Gate)
        return self.app

    def connection_made(self, transport: Any) -> None:
        """Take a connection in, or refuse it."""
        super().connection_made(transport)
        self._gate.metrics.connections.inc()
        if len(self.connections) > self._gate.settings.max_connections:
            self._refuse(503, "too_many_connections", "too many connections are open")
        else:
            self._wait_for("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._arrived()
        self._forget_sending()
        self._gate.metrics.connections.dec()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; the first byte of a request starts its time."""
        if self._timer is None and (self.cycle is None or self._is_answered()):
            self._wait_for("headers")
        heads, in_head = self._heads, self._in_head
        super().data_received(data)
        if in_head and heads == self._heads:
            self._head_bytes += len(data)
            if self._head_bytes > _LARGEST_HEAD:
                self._refuse(431, "headers_too_large", "the headers are larger than 64 KiB")

    def pause_writing(self) -> None:
        """Wait for the client to read what was sent."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Go on; the client has read some of it, and must read on."""
        self._watch_sending()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Wait for the client to read what is left of the answer."""
        super().on_response_complete()
        self._watch_sending()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to another protocol, and count it until that one ends."""
        self._arrived()
        self._unset_keepalive_if_required()  # of a request that came before over the connection
        self._forget_sending()
        super().handle_websocket_upgrade()
        protocol: Any = self.transport.get_protocol()
        lost = protocol.connection_lost

        def connection_lost(exc: Exception | None) -> None:
            self._gate.metrics.connections.dec()
            lost(exc)

        protocol.connection_lost = connection_lost
        protocol.shutdown = self._gate.guards.ending.set  # uvicorn's would cut a piece's answer off

    def on_headers_complete(self) -> None:
        """Wait for the body."""
        self._heads, self._head_bytes, self._in_head = self._heads + 1, 0, False
        self._arrived()
        self._wait_for("body")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for nothing more, or for the next request where this one has its answer."""
        self._in_head = True
        self._arrived()
        super().on_message_complete()
        if self._is_answered():  # uvicorn gave its time up as the rest of the body came
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def shutdown(self) -> None:
        """End after the request that is being answered, or after one that is on its way."""
        self._gate.guards.ending.set()
        if self.cycle is None or self._is_answered():
            self.loop.call_later(_ON_ITS_WAY_S, self._end)
        else:
            super().shutdown()

    def _is_answered(self) -> bool:
        """Whether the last request has its whole answer, be it before its body came."""
        return self.cycle is not None and self.cycle.response_complete

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def _wait_for(self, part: str) -> None:
        seconds = self._gate.settings.body_timeout_s
        message = f"the request's {part} did not come within {seconds:g} s"
        self._timer = self.loop.call_later(seconds, self._give_up, message)

    def _give_up(self, message: str) -> None:
        """Refuse a request that is too slow; whose answer went before its body came has it."""
        if self._in_head or not self._is_answered():
            self._refuse(408, "too_slow", message)
        else:
            self.transport.close()

    def _arrived(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_sending(self) -> None:
        """See whether the client reads on; one that does so slowly keeps its connection."""
        self._forget_sending()
        left = self.transport.get_write_buffer_size()
        if left:
            seconds = self._gate.settings.send_timeout_s
            self._sending = self.loop.call_later(seconds, self._see_sent, left)

    def _forget_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _see_sent(self, left: int) -> None:
        if self.transport.get_write_buffer_size() < left or self._is_writing():
            self._watch_sending()
        else:
            self._gate.metrics.refusals.labels("not_read").inc()
            self.transport.abort()  # a close would wait for what is not read

    def _is_writing(self) -> bool:
        """Whether an answer is under way that may add to what waits, so that this says nothing of
        how much the client has read.
        """
        goes_on = not self._is_answered() and not self.flow.write_paused
        return goes_on and not self.transport.is_closing()

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._arrived()
        if self.transport.is_closing():
            return
        if self.cycle is None or self._is_answered() or not self.cycle.response_started:
            self._gate.metrics.refusals.labels(code).inc()
            path = (self.scope or {}).get("path", "")  # which may not have come yet
            headers, body = raw_response(RefusedRequest(status, code, message), path)
            lines = [f"HTTP/1.1 {status} {code}".encode(), *(n + b": " + v for n, v in headers)]
            self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", body]))
        self.transport.close()
        self._watch_sending()
