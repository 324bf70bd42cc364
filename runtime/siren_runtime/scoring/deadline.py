"""When a call ends before it is done: its time is up, or its caller has gone."""

import math
import threading
import time

from siren_runtime.bundle.arguments import real_number
from siren_runtime.errors import InputError, InterruptedCall


class Deadline:
    """Looked at between engine runs."""

    def __init__(self, seconds: float | None, cancel: threading.Event | None) -> None:
        """Count from now.

        Raises:
            InputError: `seconds` is no positive number.
        """
        if seconds is not None:
            seconds = real_number("deadline", seconds)
            if not 0 < seconds < math.inf:
                raise InputError(f"deadline must be a number of seconds above 0, found {seconds}")
        if cancel is not None and not isinstance(cancel, threading.Event):
            raise InputError(f"cancel must be a threading.Event, found {type(cancel).__name__}")
        self._seconds, self._cancel = seconds, cancel
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def check(self, done: int, total: int) -> None:
        """Go on, or raise.

        Raises:
            InterruptedCall: the time is up, or the caller cancelled.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise InterruptedCall(f"cancelled after {done} of {total} engine runs")
        if time.monotonic() >= self._end:
            raise InterruptedCall(
                f"the deadline of {self._seconds:g} s passed after {done} of {total} engine runs"
            )
