"""A client of `POST /v1/score` that costs little: HTTP/1.1 over connections that are kept."""

import asyncio

import msgspec

from .callers import Reply
from .load import LOST, NOT_CONNECTED, SCORED

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Scored(msgspec.Struct):
    score: float


class Client:
    """As many connections as there are requests under way. For one event loop."""

    def __init__(self, port: int) -> None:
        """Connect to nobody yet; `port` is of the loopback."""
        self._port = port
        self._idle: list[Connection] = []

    async def score(self, text: str) -> Reply:
        """Ask for one text's score."""
        try:
            connection = self._kept() or await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return NOT_CONNECTED, None
        try:
            status, body = await _exchange(connection, msgspec.json.encode({"text": text}))
        except (OSError, asyncio.IncompleteReadError):
            connection[1].close()
            return LOST, None
        if b"connection: close" in body[0].lower():
            connection[1].close()
        else:
            self._idle.append(connection)
        score = msgspec.json.decode(body[1], type=_Scored).score if status == SCORED else None
        return status, score

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop()[1].close()

    def _kept(self) -> Connection | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None


async def _exchange(connection: Connection, body: bytes) -> tuple[int, tuple[bytes, bytes]]:
    reader, writer = connection
    writer.write(
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head[9:12]), (head, await reader.readexactly(length))
