"""Clients that no server wishes for: each kind a bounded load on a server of the loopback."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from itertools import cycle

from siren_serve.limits import allow_open_files

_HEAD = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n"
_SIZED = _HEAD + b"Content-Length: %d\r\n\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_TEN_MB = 10_000_000
_PIECE = b"<" * 65_536
_AGAIN_S = 1.0  # until one whose connection was ended makes another
_ANSWER_S = 2.0  # that others wait for an answer
_OPEN_FILES = 4096


@dataclass(frozen=True)
class Kind:
    """A kind of hostile client.

    Attributes:
        what: they are, in words.
        requests: what is sent, one after the other and over again; each is the bytes that come at
            once, and those that are sent behind them as long as the server takes them.
        a_second: how many requests, each over a connection of its own.
        held: how many connections are held open in place of that, each sending its last byte over
            and over.
        every_s: seconds between two of these bytes; None: nothing more comes.
    """

    what: str
    requests: tuple[tuple[bytes, bytes], ...]
    a_second: float = 0.0
    held: int = 0
    every_s: float | None = None


def _whole(body: bytes) -> tuple[bytes, bytes]:
    return _SIZED % len(body) + body, b""


def _messages(messages: bytes) -> tuple[bytes, bytes]:
    return _whole(b'{"messages": [' + messages + b"]}")


_JSON = (
    b"", b"{", b"nul", b"\xff\xfe{}", b'{"text": "\\ud800"}', b'{"text": 1e999}', b"[" * 100_000,
    b'{"text": ["a"]}', b'{"text": "a", "text": {}}', b'{"no such key": 1}', b'{"a":' * 50_000,
)  # fmt: skip
_HTTP = (
    b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST / HTTP/9\r\n\r\n", b"\r\n" * 1000,
    _HEAD + b"Content-Length: -1\r\n\r\n",
    _HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    _CHUNKED + b"fffffffffffffffffff\r\n",
    _HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n", _HEAD + b"no colon\r\n\r\n",
)  # fmt: skip
_MESSAGES = (
    b",".join([b'{"role":"user"}'] * 120_000),
    b",".join([b'{"role":"user","content":"a"}'] * 60_000),
    b'{"role":"user","content":[' + b",".join([b'{"type":"text","text":"a"}'] * 70_000) + b"]}",
    b'{"role":"user","content":"' + b"<" * 1_900_000 + b'"}',
    b'{"role":"user","content":"' + b"\\u0300" * 40_000 + b'"}',
    b'{"role":"user","content":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    b'{"role":"no such role","content":"a"}',
)

_INPUTS = b'{"inputs": [%s]}'
_VALUES = _INPUTS % b",".join([b"{}"] * 600_000)
_TEXTS = _INPUTS % b",".join([b'"%s"' % (b"the cat sat on the mat " * 350)] * 250)

KINDS = {
    "bodies": Kind("bodies of 10 MB, 10 a second", ((_SIZED % _TEN_MB, _PIECE),), a_second=10),
    "chunks": Kind(
        "bodies of 10 MB in chunks, 5 a second",
        ((_CHUNKED, b"10000\r\n" + _PIECE + b"\r\n"),),
        a_second=5,
    ),
    "slow": Kind("200 slow bodies", ((_SIZED % 9000 + b"{", b""),), held=200, every_s=1.0),
    "half-open": Kind("200 half-open connections", ((_HEAD + b"X", b""),), held=200),
    "idle": Kind("2,000 idle connections", ((b"", b""),), held=2000),
    "json": Kind("malformed JSON, 50 a second", tuple(map(_whole, _JSON)), a_second=50),
    "http": Kind("malformed HTTP, 50 a second", tuple((d, b"") for d in _HTTP), a_second=50),
    "messages": Kind("hostile messages, 5 a second", tuple(map(_messages, _MESSAGES)), a_second=5),
    "values": Kind("2 MB of empty objects, 5 a second", (_whole(_VALUES),), a_second=5),
    "texts": Kind("2 MB of long texts, 2 a second", (_whole(_TEXTS),), a_second=2),
}


def attack(port: int, name: str, seconds: float) -> tuple[Counter[str], float]:
    """Be hostile for so long.

    Args:
        port: of the loopback.
        name: of `KINDS`.

    Returns:
        How many requests or connections ended in which way: a status; "closed" without an answer;
        "left", which is held to the end, or without an answer for two seconds; "not connected".
        And the processor seconds that this took here.
    """
    allow_open_files(_OPEN_FILES)
    ends, before = Counter[str](), time.process_time()
    asyncio.run(_be_hostile(port, KINDS[name], time.monotonic() + seconds, ends))
    return ends, time.process_time() - before


async def _be_hostile(port: int, kind: Kind, until: float, ends: Counter[str]) -> None:
    if kind.held:
        holding = (_hold(port, kind, until, ends) for _ in range(kind.held))
        await asyncio.gather(*holding)
        return
    tasks, due = [], time.monotonic()
    for request in cycle(kind.requests):
        await asyncio.sleep(due - time.monotonic())
        if time.monotonic() >= until:
            break
        tasks.append(asyncio.create_task(_one(port, *request, None, _ANSWER_S, ends)))
        due += 1 / kind.a_second
    await asyncio.gather(*tasks)


async def _hold(port: int, kind: Kind, until: float, ends: Counter[str]) -> None:
    """Hold a connection, and make another where it is ended."""
    await asyncio.sleep(random.random() * _AGAIN_S)
    while (left := until - time.monotonic()) > 0:
        await _one(port, *kind.requests[0], kind.every_s, left, ends)
        await asyncio.sleep(min(_AGAIN_S, max(0.0, until - time.monotonic())))


async def _one(
    port: int, data: bytes, more: bytes, every_s: float | None, seconds: float, ends: Counter[str]
) -> None:
    """Send a request over a connection, and wait so long for what comes of it."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        ends["not connected"] += 1
        return
    writing = asyncio.create_task(_write(writer, data, more, every_s))
    try:
        ends[await asyncio.wait_for(_status(reader), seconds)] += 1
    except asyncio.TimeoutError:
        ends["left"] += 1
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        writer.transport.abort()


async def _write(
    writer: asyncio.StreamWriter, data: bytes, more: bytes, every_s: float | None
) -> None:
    writer.write(data)
    for _ in range(_TEN_MB // len(more) if more else 0):
        await writer.drain()
        writer.write(more)
    while every_s is not None:
        await asyncio.sleep(every_s)
        writer.write(data[-1:])


async def _status(reader: asyncio.StreamReader) -> str:
    """The status of the answer; "closed" without one."""
    try:
        line = await reader.readline()
    except (OSError, ValueError):
        return "closed"
    return line[9:12].decode("ascii", "replace") or "closed"
