"""What is asked: a thread pool over a guard, a guard for asyncio, a server. Each is picklable, and
opened in a process of its own; of a server, that is the process of its callers."""

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from siren_bench.engines.process import HoldingProcess
from siren_runtime import AsyncGuard, BusyError, Guard, Sharing

from .callers import Reply, ask_by_tasks, ask_by_threads
from .client import Client
from .load import SCORED, Answer, Load

_POOL_THREADS = 16


class Opened(Protocol):
    """A subject that is loaded."""

    def answers(self, texts: list[str], load: Load) -> list[Answer]:
        """Put a load on it."""


class Subject(Protocol):
    """Something that scores text for many callers."""

    def open(self) -> Opened:
        """Load it in this process."""


@dataclass(frozen=True)
class ThreadPool:
    """Threads that share a plain guard; `threads` are the engine's, None its default."""

    bundle: Path
    threads: int | None

    def open(self) -> Opened:
        """Load the guard."""
        return _Threads(Guard.load(self.bundle, threads=self.threads))


class _Threads:
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def answers(self, texts: list[str], load: Load) -> list[Answer]:
        return ask_by_threads(self._score, texts, load, _POOL_THREADS)

    def _score(self, text: str) -> Reply:
        return SCORED, self._guard.score(text).score


@dataclass(frozen=True)
class InProcess:
    """Tasks that share an `AsyncGuard` of so many engine runs at once, each of so many threads."""

    bundle: Path
    threads: int
    runs: int

    def open(self) -> Opened:
        """Load the guard."""
        return _Tasks(Guard.load(self.bundle, threads=self.threads), Sharing(runs=self.runs))


class _Tasks:
    def __init__(self, guard: Guard, sharing: Sharing) -> None:
        self._guard, self._sharing = guard, sharing

    def answers(self, texts: list[str], load: Load) -> list[Answer]:
        async def run() -> list[Answer]:
            async with AsyncGuard(self._guard, self._sharing) as shared:

                async def score(text: str) -> Reply:
                    try:
                        return SCORED, (await shared.score(text)).score
                    except BusyError:
                        return 429, None

                return await ask_by_tasks(score, texts, load)

        return asyncio.run(run())


@dataclass(frozen=True)
class OverHttp:
    """A server on a port of the loopback."""

    port: int

    def open(self) -> Opened:
        """Load nothing: this is the process of the callers."""
        return _Http(self.port)


class _Http:
    def __init__(self, port: int) -> None:
        self._port = port

    def answers(self, texts: list[str], load: Load) -> list[Answer]:
        async def run() -> list[Answer]:
            client = Client(self._port)
            try:
                return await ask_by_tasks(client.score, texts, load)
            finally:
                client.close()

        return asyncio.run(run())


class SubjectProcess(HoldingProcess):
    """A subject in its process."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject.open)

    def answers(self, texts: list[str], load: Load) -> list[Answer]:
        """Put a load on it, and wait for its end."""
        return self.begin(texts, load).result()

    def begin(self, texts: list[str], load: Load) -> Future[list[Answer]]:
        """Put a load on it; the future has the answers."""
        return self.submit(_answers, texts, load)


def _answers(opened: Opened, texts: list[str], load: Load) -> list[Answer]:
    return opened.answers(texts, load)


def usage(pid: int) -> tuple[float, int]:
    """Processor seconds and resident bytes of a process and its children."""
    seconds, resident = 0.0, 0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        with process.oneshot():
            times = process.cpu_times()
            seconds += times.user + times.system
            resident += process.memory_info().rss
    return seconds, resident
