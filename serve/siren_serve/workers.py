"""Several workers, processes that listen together, and their parent."""

import os
import socket
import sys
import time
from pathlib import Path

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from siren_runtime.errors import SirenError

from . import logs
from .tls import check_tls

LOG_LEVEL = "SIREN_SERVE_LOG_LEVEL"  # in a worker's environment
_LOAD_S = 600  # that a worker may take to load, and one that serves to answer
_ANSWER_S = 0.1  # in which one that is well answers
_PAUSES_S = 1, 2, 4, 8, 15, 30, 60  # between tries to start a worker; the last ever again


class WorkerConfig(uvicorn.Config):
    """uvicorn's settings in a worker, whose log is as its parent's."""

    def load(self) -> None:
        """Make the application; where a file cannot be used, say so in a line, and end."""
        logs.configure(os.environ[LOG_LEVEL])
        try:
            files = self.ssl_keyfile, self.ssl_certfile, self.ssl_ca_certs
            check_tls(*(None if file is None else Path(file) for file in files))
            super().load()
        except SirenError as error:
            logs.failure(f"the worker does not start: {error}")
            sys.exit(1)


class _Worker(Process):
    """uvicorn's worker, which is asked how it is without waiting long for the answer.

    Attributes:
        has_served: whether it came to serve.
        is_old: whether a reload is to replace it.
        tries: starts in vain of its place since one served there.
        due: when the follower of one that ended starts, in seconds of the monotonic clock; None of
            one that is not known to have ended.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.has_served = self.is_old = False
        self.tries = 0
        self.due: float | None = None
        self.started = 0.0
        self._asked: float | None = None  # when, of a question that it has not answered

    def start(self) -> None:
        """Start it."""
        super().start()
        self.started = time.monotonic()
        self.child_conn.close()  # so that the pipe ends with the worker

    def is_well(self) -> bool:
        """Whether it lives and answers, or may still answer what it was asked before."""
        wait = 0.0  # for an answer to what was asked before
        try:
            if self._asked is None:
                self.parent_conn.send(b"ping")
                self._asked, wait = time.monotonic(), _ANSWER_S
            if self.parent_conn.poll(wait):
                self.has_served, self._asked = self.parent_conn.recv(), None
        except (OSError, EOFError):
            return False
        since = self._asked if self.has_served else self.started
        in_time = since is None or time.monotonic() < since + _LOAD_S
        return in_time and self.process.is_alive()


class Parent(Multiprocess):
    """uvicorn's parent of workers, which serves on as long as one of them does.

    A worker that served and died is followed by another at once. One that ends before it serves, as
    where its bundle can be loaded no more, is followed after a pause, which grows each time; but
    where no other worker serves either, the parent has failed, and ends.

    In a reload one new worker at a time loads, takes an old one's place, and the old one answers
    what it accepted. Meanwhile the parent looks after all, and waits for none, so that it hears
    signals.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.has_failed = False
        self._workers: list[_Worker] = []
        self._new: _Worker | None = None  # of a reload; it loads
        self._leaving: list[_Worker] = []  # replaced; they answer what they accepted
        self._gauged: frozenset[int] = frozenset()  # workers that may have left gauges

    def init_processes(self) -> None:
        """Start the workers."""
        self._workers = [self._started() for _ in range(self.processes_num)]

    def restart_all(self) -> None:
        """Begin a reload, or begin it anew."""
        self._dismiss_new()  # which may have read what was there before
        for worker in self._workers:
            worker.is_old = True

    def keep_subprocess_alive(self) -> None:
        """Look after each worker, and go on with a reload; uvicorn does so twice a second."""
        self._forget_gauges()
        self._leaving = [worker for worker in self._leaving if worker.process.is_alive()]
        if not self.should_exit.is_set():
            self._reload()
        for place, worker in enumerate(self._workers):
            if self.should_exit.is_set() or self.signal_queue:  # which may have ended the workers
                return
            if worker.due is not None:
                if time.monotonic() >= worker.due:
                    self._follow(place)
            elif not worker.is_well():
                self._bury(place, worker)

    def terminate_all(self) -> None:
        """Tell all to end."""
        self._dismiss_new()
        for worker in self._workers:
            worker.terminate()

    def join_all(self) -> None:
        """Wait until all have ended."""
        for worker in (*self._leaving, *self._workers):
            worker.join()

    def handle_ttin(self) -> None:
        """Change nothing: there are as many workers as were asked for."""

    handle_ttou = handle_ttin

    def _reload(self) -> None:
        old = next((worker for worker in self._workers if worker.is_old), None)
        if old is None or self._leaving:  # so that no more than one is in memory beside the others
            return
        if self._new is None:
            self._new = self._started()
        elif not self._new.is_well():
            logs.failure(
                "the reload ends: a new worker did not start, and those there serve on",
                process=self._new.pid,
            )
            self._new.kill()  # it may hang
            self._new.join()
            self._new = None
            for worker in self._workers:
                worker.is_old = False
        elif self._new.has_served:
            self._workers[self._workers.index(old)], self._new = self._new, None
            old.terminate()
            self._leaving.append(old)

    def _bury(self, place: int, worker: _Worker) -> None:
        worker.kill()  # it may hang
        worker.join()
        if worker.has_served:
            logs.alarm("a worker died, and another one starts", process=worker.pid)
            self._follow(place)
        elif any(other.is_well() and other.has_served for other in self._workers):
            worker.tries += 1
            pause = _PAUSES_S[min(worker.tries, len(_PAUSES_S)) - 1]
            worker.due = time.monotonic() + pause
            logs.failure(
                "a worker did not start; the others serve on, and it is tried again",
                process=worker.pid,
                tries=worker.tries,
                pause_s=pause,
            )
        else:
            self.has_failed = True
            self.should_exit.set()

    def _follow(self, place: int) -> None:
        """Start the follower of a worker that ended; where one loads for a reload, that is it."""
        ended = self._workers[place]
        follower, self._new = self._new or self._started(), None
        follower.tries = 0 if ended.has_served else ended.tries
        self._workers[place] = follower

    def _started(self) -> _Worker:
        worker = _Worker(self.config, self.sockets)
        worker.start()
        return worker

    def _dismiss_new(self) -> None:
        """Tell the new worker to end; it may serve already, which is seen at the next look."""
        if self._new is not None:
            self._new.terminate()
            self._leaving.append(self._new)
            self._new = None

    def _forget_gauges(self) -> None:
        from prometheus_client.multiprocess import mark_process_dead  # by the environment then

        new = [] if self._new is None else [self._new]
        workers = [worker.process for worker in (*self._workers, *self._leaving, *new)]
        living = frozenset(one.pid for one in workers if one.pid is not None and one.is_alive())
        for pid in self._gauged - living:  # died, or gave way to another
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # else they count for good
        self._gauged = living
