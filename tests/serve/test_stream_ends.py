"""WebSockets whose client goes, or whose server ends."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any, cast

import pytest
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from served import Running, eventually, running
from siren_runtime import Guard
from siren_serve import inbox
from siren_serve.inbox import Inbox
from waiting import WAIT_S

PIECES = ["How ", "do I ", "pick ", "a lock, ", "now?"]
RESTART = 1012

pytestmark = pytest.mark.filterwarnings("ignore:.*re-encodes its text")


@contextmanager
def opened(server: Running) -> Iterator[ClientConnection]:
    """A stream that is open."""
    with connect(server.url.replace("http://", "ws://") + "/v1/stream") as socket:
        socket.send("{}")
        assert received(socket)["type"] == "opened"
        yield socket


def fed(socket: ClientConnection, piece: str) -> None:
    socket.send(json.dumps({"text": piece}))


def received(socket: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(socket.recv(WAIT_S))
    return found


def has_ended(socket: ClientConnection) -> bool:
    with pytest.raises(ConnectionClosed):
        socket.recv(WAIT_S)
    return True


def pieces_waiting(server: Running) -> int:
    return server.served.guard.dispatcher.waiting[2]


@pytest.mark.parametrize(
    "go",
    [ClientConnection.close, lambda socket: socket.socket.shutdown(SHUT_RDWR)],
    ids=["closes", "is-cut-off"],
)
def test_a_piece_whose_client_goes_costs_no_run(
    bundle: Path, go: Callable[[ClientConnection], None]
) -> None:
    runs = 'siren_run_seconds_count{guard="tiny",kind="stream"}'
    with running({"tiny": str(bundle)}, timeout_s=10.0 * WAIT_S) as server:
        with opened(server) as socket, server.held():
            fed(socket, "a")
            eventually(lambda: pieces_waiting(server) == 1)
            go(socket)
            eventually(lambda: server.metric('siren_streams{guard="tiny"}') == 0)
        eventually(lambda: pieces_waiting(server) == 0)
        assert server.metric(runs) == 0


def test_pieces_that_are_sent_ahead_are_answered_in_their_order(
    bundle: Path, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "_AHEAD", 30)  # a message and the next one
    with running({"tiny": str(bundle)}) as server, opened(server) as socket:
        with server.held():
            for piece in PIECES:
                fed(socket, piece)
        scores = [received(socket)["score"] for _ in PIECES]
    with guard.stream() as stream:
        assert scores == pytest.approx([stream.feed(piece).score for piece in PIECES], abs=1e-6)


def test_a_server_that_ends_answers_the_piece_that_is_being_read(bundle: Path) -> None:
    with running({"tiny": str(bundle)}, timeout_s=float(WAIT_S)) as server:
        with opened(server) as socket, opened(server) as idle:
            server.guards.draining = True  # as SIGTERM does before the end
            fed(idle, "a")
            assert received(idle)["type"] == "result"
            with server.held():
                fed(socket, "a")
                fed(socket, "b")  # which was not begun
                eventually(lambda: pieces_waiting(server) == 1)
                server.server.should_exit = True
                assert has_ended(idle)
            assert received(socket)["type"] == "result"
            assert has_ended(socket)
        assert (socket.close_code, idle.close_code) == (RESTART, RESTART)


class Endless:
    """A WebSocket whose client sends without end, or goes after some messages."""

    def __init__(self, messages: float = float("inf")) -> None:
        self.messages, self.count = messages, 0

    async def receive_text(self) -> str:
        if self.count == self.messages:
            raise WebSocketDisconnect(detail="gone")
        self.count += 1
        return "a" * 9


def held_by(socket: Endless) -> Inbox:
    return Inbox(cast("WebSocket[Any, Any, Any]", socket), asyncio.Event())


def test_no_more_is_received_ahead_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "_AHEAD", 40)

    async def receive() -> None:
        socket = Endless()
        async with held_by(socket) as messages:
            for count in (5, 6, 7):
                for _ in range(10):
                    await asyncio.sleep(0)
                assert socket.count == count
                assert await messages.next(WAIT_S) == "a" * 9

    asyncio.run(receive())


def test_messages_of_a_client_that_has_gone_are_not_answered() -> None:
    async def receive() -> None:
        async with held_by(Endless(messages=2)) as messages:
            await messages.next(WAIT_S)

    with pytest.raises(WebSocketDisconnect):
        asyncio.run(receive())
