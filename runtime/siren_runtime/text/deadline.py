"""When a call ends before it is done: its time is up, or its caller has gone."""

import math
import threading
from collections.abc import Callable
from copy import copy
from time import monotonic
from typing import Final

from siren_runtime.bundle.arguments import real_number
from siren_runtime.errors import InputError, InterruptedCall

Check = Callable[[str], None]  # `Deadline.check`


class Deadline:
    """Looked at between engine runs, between the parts in which texts are tokenized, and before
    each window is cut.
    """

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
        self._seconds, self._cancels = seconds, () if cancel is None else (cancel,)
        self._end = math.inf if seconds is None else monotonic() + seconds

    def or_by(self, cancel: threading.Event) -> "Deadline":
        """This one, which the event ends too."""
        both = copy(self)
        both._cancels = *self._cancels, cancel
        return both

    def check(self, when: str, ahead: float = 0.0) -> None:
        """Go on, or raise.

        Args:
            when: how far the call has come, for the message.
            ahead: seconds that what comes next, and cannot be ended, is likely to take.

        Raises:
            InterruptedCall: the time is up, or would be by then, or the caller cancelled.
        """
        if any(cancel.is_set() for cancel in self._cancels):
            raise InterruptedCall(f"cancelled {when}")
        now = monotonic()
        if now + ahead >= self._end:
            passed = "passed" if now >= self._end else "would have passed"
            raise InterruptedCall(f"the deadline of {self._seconds:g} s {passed} {when}")


NO_DEADLINE: Final = Deadline(None, None)
