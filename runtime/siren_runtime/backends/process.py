"""Which process an engine may run in: the one that opened it.

A fork copies memory but no threads and no GPU context. What ran on them hangs in the child, or ends
it by a signal when it is taken down there.
"""

import ctypes
import os
import weakref
from typing import Any

from siren_runtime.errors import BackendError

_opened: "weakref.WeakSet[Any]" = weakref.WeakSet()


class OpeningProcess:
    """The process in which an engine was opened."""

    def __init__(self) -> None:
        self._id = os.getpid()

    def check(self) -> None:
        """Refuse to run in a process that was forked from it.

        Raises:
            BackendError: this is another process.
        """
        if os.getpid() != self._id:
            raise BackendError(
                f"the guard was loaded in process {self._id} and this is {os.getpid()}, forked "
                "from it: an engine's threads do not come along; load the guard in the child"
            )


def keep_in_children(engine: Any) -> None:
    """Never take `engine` down in a forked child, where its destructor waits for lost threads."""
    _opened.add(engine)


def _keep() -> None:
    for engine in _opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_keep)
