"""What the client of a WebSocket sends, received while its message before is still answered."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Any

from litestar import WebSocket

_AHEAD = 64 << 10  # characters of messages that wait, beyond which no other one is received


class Inbox:
    """Messages in the order in which they come, until the client goes or the server ends.

    A client that goes ends the task that entered the inbox, whatever it awaits, so that nothing is
    read for nobody. It is noticed while no more waits than may.
    """

    def __init__(self, socket: WebSocket[Any, Any, Any], ending: asyncio.Event) -> None:
        """Receive from `socket`, which was accepted; `ending` is set when the server ends."""
        self._socket, self._ending = socket, ending
        self._messages = deque[str]()
        self._size = 0  # characters that wait, and one for each message
        self._has_room, self._has_news = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._error: Exception | None = None  # why no more comes: the client has gone

    async def __aenter__(self) -> "Inbox":
        loop, reader = asyncio.get_running_loop(), asyncio.current_task()
        assert reader is not None
        self._tasks = [loop.create_task(self._receive(reader)), loop.create_task(self._end())]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Receive no more.

        Raises:
            WebSocketDisconnect: the client has gone, which ended this task.
        """
        for task in self._tasks:
            task.cancel()
        if self._error is not None and isinstance(error, asyncio.CancelledError):
            raise self._error from None

    async def next(self, seconds: float) -> str | None:
        """Wait so long for the next message; None: the server ends, whatever else has come.

        Raises:
            asyncio.TimeoutError: none has come by then.
            WebSocketDisconnect: the client has gone.
        """
        await asyncio.wait_for(self._has_news.wait(), seconds)
        if self._error is not None:  # a cancel that came beside a message is lost in `wait_for`
            raise self._error
        if self._ending.is_set():
            return None
        text = self._messages.popleft()
        self._size -= len(text) + 1
        self._has_room.set()
        if not self._messages:
            self._has_news.clear()
        return text

    async def _receive(self, reader: "asyncio.Task[Any]") -> None:
        try:
            while True:
                text = await self._socket.receive_text()
                self._messages.append(text)
                self._size += len(text) + 1
                self._has_news.set()
                while self._size > _AHEAD:
                    self._has_room.clear()
                    await self._has_room.wait()
        except Exception as error:  # the reader's to see
            self._error = error
            self._has_news.set()
            reader.cancel()

    async def _end(self) -> None:
        await self._ending.wait()
        self._has_news.set()
