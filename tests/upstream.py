"""A model server on the loopback that speaks OpenAI's chat API, and answers as a test says."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from waiting import WAIT_S, eventually

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "small"}


@dataclass
class Asked:
    """A request that came, and how it ended."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    gone: threading.Event = field(default_factory=threading.Event)  # the caller left early


@dataclass
class Script:
    """How requests are answered.

    Attributes:
        deltas: of a stream: an index and what its choice says; a str is its content.
        whole: the body of an answer that is no stream.
        status, headers: of any answer.
        refuses: a text; what asks with it gets status 400.
        cuts: lengths into which the bytes are cut, over and over; empty: a piece an event.
        pause_s: before each of these.
        wait_s: before any answer.
        until: what any answer waits for.
        hang: whether the stream stays open behind the last chunk, without an end.
        breaks: whether the connection breaks there.
        ends: whether the stream ends there, as if all was well.
        tail: events behind the deltas, as JSON.
        raw: bytes behind these.
    """

    deltas: Sequence[tuple[int, Any]] = ()
    whole: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    refuses: str = ""
    cuts: Sequence[int] = ()
    pause_s: float = 0.0
    wait_s: float = 0.0
    until: threading.Event | None = None
    hang: bool = False
    breaks: bool = False
    ends: bool = False
    tail: Sequence[Any] = ()
    raw: bytes = b""

    def pieces(self, kind: str) -> list[bytes]:
        """The bytes of a stream."""
        events = [{**CHUNK, "choices": [_choice(kind, *delta)]} for delta in self.deltas]
        lines = [f"data: {json.dumps(event)}\r\n\r\n".encode() for event in [*events, *self.tail]]
        lines += [self.raw] if self.raw else []
        if not self.hang and not self.breaks and not self.ends:
            lines.append(b": that was it\n\ndata: [DONE]\n\n")
        if not self.cuts:
            return lines
        data, found = b"".join(lines), []
        while data:
            length = self.cuts[len(found) % len(self.cuts)]
            found.append(data[:length])
            data = data[length:]
        return found


def _choice(kind: str, index: int, said: Any) -> dict[str, Any]:
    if kind == "completions":
        return {"index": index, "text": said or "", "finish_reason": None if said else "stop"}
    delta = {"content": said} if isinstance(said, str) else said or {}
    return {"index": index, "delta": delta, "finish_reason": None if said else "stop"}


def chat_of(*messages: dict[str, Any]) -> dict[str, Any]:
    """The body of an answer that is no stream, a choice each message."""
    choices = [
        {"index": index, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
        for index, message in enumerate(messages)
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return {**CHUNK, "object": "chat.completion", "choices": choices, "usage": usage}


class ModelServer:
    """An ASGI application; `script` says what it does next."""

    def __init__(self) -> None:
        self.script = Script()
        self.asked: list[Asked] = []
        self.url = ""

    @property
    def last(self) -> Asked:
        """The latest request."""
        return self.asked[-1]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        asked = Asked(scope["path"], headers, json.loads(body or b"{}"))
        self.asked.append(asked)
        answering = asyncio.ensure_future(self._answer(asked, send))
        leaving = asyncio.ensure_future(receive())
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            asked.gone.set()
        for task in (answering, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _answer(self, asked: Asked, send: Any) -> None:
        script = self.script
        await asyncio.sleep(script.wait_s)
        if script.until is not None:
            assert await asyncio.to_thread(script.until.wait, WAIT_S)
        is_refused = script.refuses and script.refuses in json.dumps(asked.body)
        status = 400 if is_refused else script.status
        streamed = asked.body.get("stream") and status == 200
        kind = "text/event-stream" if streamed else "application/json"
        headers = {"content-type": kind, **script.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        if not streamed:
            await send({"type": "http.response.body", "body": json.dumps(script.whole).encode()})
            return
        for piece in script.pieces(asked.path.removeprefix("/v1/")):
            await asyncio.sleep(script.pause_s)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if script.hang:
            await asyncio.sleep(WAIT_S)
        if script.breaks:
            raise ConnectionError("the model server breaks, as it was told to")
        await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def model_server() -> Iterator[ModelServer]:
    """Serve in a thread until the end of the block."""
    app = ModelServer()
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="critical", interface="asgi3")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started or not thread.is_alive())
    app.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    yield app
    server.should_exit = server.force_exit = True
    thread.join(WAIT_S)
