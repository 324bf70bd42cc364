"""A client that does not read is ended, and one that reads is not, whatever came before."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from siren_serve.gate import Gate
from siren_serve.guards import Guards
from siren_serve.keys import Keys
from siren_serve.metrics import Metrics
from siren_serve.protocol import BoundedProtocol
from siren_serve.server import uvicorn_options
from siren_serve.settings import Settings

SETTINGS = Settings(guards={}, body_timeout_s=1000.0, send_timeout_s=60.0)
# Bytes that the system does not take at once: an answer of so many is written before its client has
# read them, and one that is large waits for its client.
SMALL, MIDDLE, LARGE = 10_000, 50_000, 200_000


class Connection:
    """A client's end of a connection, whose other end a server's protocol has; time stands still
    but for `pass_time`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop, self._now = loop, 0.0
        monkeypatch.setattr(loop, "time", lambda: self._now)
        self.go_on = asyncio.Event()
        self.metrics = Metrics()
        self.read = b""
        self.transport: asyncio.Transport

    async def open(self) -> None:
        self._client, served = socket.socketpair()
        served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self._client.setblocking(False)
        guards = Guards(SETTINGS, self.metrics)
        gate = Gate(self._answer, SETTINGS, Keys(None), guards, self.metrics)
        config = uvicorn.Config(gate, **uvicorn_options(SETTINGS))
        config.load()
        self.transport, _ = await self._loop.connect_accepted_socket(
            lambda: BoundedProtocol(config, ServerState(), {}, self._loop), served
        )

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with as many bytes as the path says; below /begun the end waits for `go_on`."""
        await receive()
        *_, kind, size = scope["path"].split("/")
        headers = [(b"content-length", str(int(size) + 3).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = b"a" * int(size)
        if kind == "begun":
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await self.go_on.wait()
            body = b""
        await send({"type": "http.response.body", "body": body + b"end", "more_body": False})

    def ask(self, *paths: str) -> None:
        requests = [f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n" for path in paths]
        self._client.sendall("".join(requests).encode())

    @property
    def waiting(self) -> int:
        """Bytes that wait to be sent."""
        return self.transport.get_write_buffer_size()

    async def take(self, until: Callable[[], bool]) -> None:
        """Read until something is so."""

        def taken() -> bool:
            with suppress(BlockingIOError):
                self.read += self._client.recv(1024)
            return until()

        await happened(taken)

    async def pass_time(self, seconds: float) -> None:
        self._now += seconds
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def is_given_up(self) -> bool:
        return b'siren_refusals_total{code="not_read"} 1.0' in self.metrics.text()


async def happened(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


Client = Callable[[Connection], Awaitable[None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Client], None]:
    """Run what a client does over one connection."""

    def run(client: Client) -> None:
        async def act() -> None:
            connection = Connection(asyncio.get_running_loop(), monkeypatch)
            await connection.open()
            await client(connection)
            connection.transport.abort()
            await asyncio.sleep(0)

        asyncio.run(act())

    return run


@pytest.mark.parametrize("pipelined", [False, True])
def test_an_answer_is_not_ended_for_what_was_unread_of_the_one_before(
    run: Callable[[Client], None], pipelined: bool
) -> None:
    async def client(connection: Connection) -> None:
        first, second = f"/whole/{SMALL}", f"/begun/{MIDDLE}"
        connection.ask(first, *([second] if pipelined else []))
        await happened(lambda: connection.waiting > 0)
        await connection.take(lambda: b"end" in connection.read)
        if not pipelined:
            connection.ask(second)
        await happened(lambda: connection.waiting > SMALL)
        await connection.pass_time(61)
        assert not connection.is_given_up
        connection.go_on.set()
        await connection.take(lambda: connection.read.count(b"end") == 2)
        assert connection.read.count(b"a" * SMALL) == 1 + MIDDLE // SMALL

    run(client)


async def _second(connection: Connection) -> None:
    connection.ask(f"/whole/{SMALL}")
    await connection.take(lambda: b"end" in connection.read)
    connection.ask(f"/whole/{SMALL}")
    await happened(lambda: connection.waiting > 0)


async def _end(connection: Connection) -> None:
    connection.ask(f"/whole/{LARGE}")
    await happened(lambda: connection.waiting > MIDDLE)
    await connection.take(lambda: connection.waiting < SMALL)
    assert connection.waiting > 0


async def _midst(connection: Connection) -> None:
    connection.ask(f"/begun/{LARGE}")
    await happened(lambda: connection.waiting > MIDDLE)


async def _first_of_two(connection: Connection) -> None:
    connection.ask(f"/whole/{LARGE}")
    await happened(lambda: connection.waiting > MIDDLE)
    connection.ask(f"/begun/{SMALL}")


async def _both_of_two(connection: Connection) -> None:
    connection.ask(f"/whole/{SMALL}", f"/whole/{SMALL}")
    await happened(lambda: connection.waiting > SMALL)


@pytest.mark.parametrize("unread", [_second, _end, _midst, _first_of_two, _both_of_two])
def test_a_client_that_reads_no_more_is_ended(
    run: Callable[[Client], None], unread: Client
) -> None:
    async def client(connection: Connection) -> None:
        await unread(connection)
        await connection.pass_time(59)
        assert not connection.is_given_up
        for _ in range(2):
            await connection.pass_time(61)
        assert connection.is_given_up

    run(client)
