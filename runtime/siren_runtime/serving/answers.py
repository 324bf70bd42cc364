"""How whoever waits for something is answered, unless they have gone."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")
_claiming = threading.Lock()


def settle(future: "Future[_T]", make: Callable[[], _T]) -> None:
    """Answer with what `make` returns or raises; who has gone is not answered, nor asked for."""
    if not _claimed(future):
        return
    try:
        future.set_result(make())
    except Exception as error:  # the caller's to see, not this thread's to end of
        future.set_exception(error)


def fail(future: "Future[Any]", error: BaseException) -> None:
    """Answer with an error, where there is no answer yet."""
    if _claimed(future):
        future.set_exception(error)


def _claimed(future: "Future[Any]") -> bool:
    """Whether the answer is this thread's to give: nobody else gives it, and somebody waits."""
    with _claiming:
        if future.done() or future.running():
            return False
        return future.set_running_or_notify_cancel()
