"""Run things in fresh processes: engines that must not share threads, and memory."""

import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from siren_bench.records.samples import reason
from siren_runtime.errors import SirenError

from .engine import Engine

P = ParamSpec("P")
T = TypeVar("T")
H = TypeVar("H", bound="HoldingProcess")


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a module-level function in a new Python process and return what it returns."""
    with one_process() as executor:
        return executor.submit(function, *args, **kwargs).result()


def peak_memory() -> int:
    """Return the largest resident memory that this process had, in bytes.

    Ever, or since `reset_peak`. File-backed pages count. The kernel's own high-water mark, so no
    peak is missed.

    Raises:
        SirenError: the system is not Linux.
    """
    return _status("self")["VmHWM"]


def reset_peak() -> None:
    """Let `peak_memory` count from what is resident now.

    Raises:
        SirenError: the system is not Linux, or does not let a process do so.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5)
    except OSError as error:
        raise SirenError(f"the peak of memory cannot be reset: {error}") from None


def resident_memory() -> int:
    """Return the resident memory of this process and of its children, in bytes.

    File-backed pages count.

    Raises:
        SirenError: the system is not Linux.
    """
    return sum(_status(process)["VmRSS"] for process in ("self", *_children()))


class HoldingProcess:
    """A process of its own that makes something, holds it, and lets functions use it.

    What is made stays there, and the functions run one after another.
    """

    def __init__(self, make: Callable[[], object]) -> None:
        """Start the process, and wait until the thing is made.

        Raises:
            Exception: what `make` raises.
        """
        self._executor = one_process()
        try:
            self.pid = self._executor.submit(_hold, make).result()
        except BaseException:
            self._executor.shutdown()
            raise

    def submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Call a module-level function with what is held and `args`, without waiting for it."""
        return self._executor.submit(_with_held, function, *args)

    def __enter__(self: H) -> H:
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown()


class EngineProcess(HoldingProcess):
    """Engines of one model, loaded in a process of its own, which times itself.

    So the thread pools of two models, which spin for a while after their work, do not meet in
    one process, and no engine pays for another's memory.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.load)

    def score(self, engine: Engine, text: str) -> tuple[float, float | None]:
        """Return the seconds that scoring took and the score."""
        return self.submit(_score, engine, text).result()

    def score_batches(
        self, engine: Engine, batches: Sequence[Sequence[str]]
    ) -> tuple[float, list[float]]:
        """Return the seconds that all batches took, one after the other, and the scores."""
        return self.submit(_score_batches, engine, batches).result()


def load_engines(
    stack: ExitStack, engines: Sequence[Engine]
) -> tuple[list[tuple[Engine, EngineProcess]], dict[str, str]]:
    """Load engines, those of one model in one process, which scores a word to show that it can.

    `stack` ends the processes.

    Returns:
        The engines that loaded, each with its process, and for each of the others why not.

    Raises:
        Exception: the first engine, which the others are compared with, does not load.
    """
    loaded: list[tuple[Engine, EngineProcess]] = []
    failed: dict[str, str] = {}
    processes: dict[Hashable, EngineProcess | str] = {}
    for engine in engines:
        if engine.model_key not in processes:
            try:
                process = stack.enter_context(EngineProcess(engine))
                process.score(engine, "a")
            except Exception as error:  # whatever a peer's libraries raise
                if not loaded:
                    raise
                processes[engine.model_key] = reason(error)
            else:
                processes[engine.model_key] = process
        found = processes[engine.model_key]
        if isinstance(found, str):
            failed[engine.name] = found
        else:
            loaded.append((engine, found))
    return loaded, failed


def one_process() -> ProcessPoolExecutor:
    """Make an executor of one process that is started anew and ends with this one."""
    # Spawned, since a forked child would inherit threads and the parent's peak of memory.
    return ProcessPoolExecutor(
        max_workers=1, mp_context=get_context("spawn"), initializer=_end_with_parent
    )


def _end_with_parent() -> None:
    """A parent that is killed tells its children nothing; each would wait, and hold its engine.

    Control-C reaches them too: they end at once, and what there is to say the parent says.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parents_end, daemon=True).start()


def _wait_for_parents_end() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_held: Any  # of the process that _hold ran in


def _hold(make: Callable[[], object]) -> int:
    global _held
    _held = make()
    return os.getpid()


def _with_held(function: Callable[..., T], *args: object) -> T:
    return function(_held, *args)


def _score(model: Any, engine: Engine, text: str) -> tuple[float, float | None]:
    start = time.perf_counter()
    score = engine.score(model, text)
    return time.perf_counter() - start, score


def _score_batches(
    model: Any, engine: Engine, batches: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    start = time.perf_counter()
    scores = [score for texts in batches for score in engine.score_batch(model, texts)]
    return time.perf_counter() - start, scores


def _status(process: str) -> dict[str, int]:
    """Read the memory fields of a process, in bytes."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        raise SirenError("memory is read from /proc/self/status, which is Linux's") from None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS")}


def _children() -> list[str]:
    """The process ids of what this process runs, an engine of another Python for one."""
    tasks = Path("/proc/self/task").glob("*/children")
    return [child for task in tasks for child in task.read_text(encoding="ascii").split()]
