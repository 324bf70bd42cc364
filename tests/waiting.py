"""Waiting for what happens in another thread or process."""

import time
from collections.abc import Callable

WAIT_S = 60


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
