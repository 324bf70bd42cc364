"""Run things in fresh processes: engines that must not share threads, and peaks of memory."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from siren_runtime.errors import SirenError

from .engines import Engine, Scorer

P = ParamSpec("P")
T = TypeVar("T")


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a module-level function in a new Python process and return what it returns."""
    with _executor() as executor:
        return executor.submit(function, *args, **kwargs).result()


def peak_memory() -> int:
    """Return the largest resident memory that this process ever had, in bytes.

    File-backed pages count. The kernel's own high-water mark, so no peak is missed.

    Raises:
        SirenError: the system is not Linux.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        raise SirenError("peak memory is read from /proc/self/status, which is Linux's") from None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


class EngineProcess:
    """An engine loaded in a process of its own, which times itself.

    So the thread pools of two engines, which spin for a while after their work, do not meet in
    one process, and no engine pays for another's memory.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._executor = _executor()
        self._executor.submit(_load, engine).result()

    def score(self, text: str) -> tuple[float, float]:
        """Return the seconds that scoring took and the score."""
        return self._executor.submit(_score, text).result()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._executor.shutdown()


def _executor() -> ProcessPoolExecutor:
    # Spawned, since a forked child would inherit threads and the parent's peak of memory.
    return ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))


_scorer: Scorer  # of the process that _load ran in


def _load(engine: Engine) -> None:
    global _scorer
    _scorer = engine.load()


def _score(text: str) -> tuple[float, float]:
    start = time.perf_counter()
    score = _scorer(text)
    return time.perf_counter() - start, score
