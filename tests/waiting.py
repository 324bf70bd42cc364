"""Waiting for what happens in another thread or process."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

WAIT_S = 60


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


async def left(task: "asyncio.Future[object]") -> None:
    """Cancel what somebody waits for, as one who leaves does, and let it end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
