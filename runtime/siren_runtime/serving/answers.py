"""How whoever waits for something is answered, unless they have gone."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


def settle(future: "Future[_T]", make: Callable[[], _T]) -> None:
    """Answer with what `make` returns or raises; who has gone is not answered, nor asked for."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(make())
    except Exception as error:  # the caller's to see, not this thread's to end of
        future.set_exception(error)


def fail(future: "Future[Any]", error: BaseException) -> None:
    """Answer with an error, where there is no answer yet."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
