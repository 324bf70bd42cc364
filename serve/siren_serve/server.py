"""Running the application in uvicorn: one process, or a parent with several workers."""

import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from siren_runtime.errors import BackendError, SirenError

from . import logs
from .app import ENVIRONMENT, make_app
from .limits import allow_open_files
from .protocol import BoundedProtocol
from .settings import Settings
from .tls import check_tls

_LOG_LEVEL = "SIREN_SERVE_LOG_LEVEL"
_END_S = 30  # beyond the timeout of requests, for those under way when the server ends
_OTHER_FILES = 256  # that a process has open beside connections
_LOAD_S = 600  # that a new worker may take to load before the parent gives it up
_PAUSES_S = 1, 2, 4, 8, 15, 30, 60  # between tries to start a worker; the last ever again


def serve(settings: Settings, *, host: str, port: int, log_level: str, tls: dict[str, Any]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        port: 0 takes one that is free, which a log tells.
        tls: uvicorn's ssl_keyfile, ssl_certfile, ssl_keyfile_password and ssl_ca_certs.

    Raises:
        BackendError: the server did not start; its log says why.
        InputError: the file of keys, or the upstream's URL or key, cannot be used.
    """
    logs.configure(log_level)
    application = make_app(settings)  # also where workers make their own: they would die of it
    _allow_connections(settings)
    options = {**uvicorn_options(settings), "host": host, "port": port, **tls}
    os.environ[_LOG_LEVEL] = log_level
    os.environ[ENVIRONMENT] = settings.encode()
    if settings.workers > 1:
        _serve_by_workers(settings, options)
        return
    config = uvicorn.Config(application, **options)
    # uvicorn raises the signal that ended it again: an end that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = uvicorn.Server(config)
    try:
        server.run()
    except SystemExit:
        if server.started:
            raise
    if not server.started:
        raise BackendError("the server did not start; the lines above say why")


def _allow_connections(settings: Settings) -> None:
    each = 1 if settings.proxy is None else 2  # and one to the upstream
    needed = each * settings.max_connections + _OTHER_FILES
    if not allow_open_files(needed):
        logs.alarm(
            "the system allows fewer open files than connections need: raise the limit "
            "(ulimit -Hn, LimitNOFILE=) or lower --max-connections",
            needed=needed,
        )


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Settings of uvicorn that are always the same, and those that follow from a server's."""
    longest = settings.proxy.timeout_s if settings.proxy else settings.timeout_s
    return {
        "http": BoundedProtocol,
        "interface": "asgi3",
        "proxy_headers": False,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "lifespan": "on",
        "ws_max_size": settings.max_body_bytes,
        "timeout_graceful_shutdown": int(longest + _END_S),
        "timeout_worker_healthcheck": _LOAD_S,
    }


class _WorkerConfig(uvicorn.Config):
    """uvicorn's settings in a worker, whose log is as its parent's."""

    def load(self) -> None:
        """Make the application; where a file cannot be used, say so in a line, and end."""
        logs.configure(os.environ[_LOG_LEVEL])
        try:
            files = self.ssl_keyfile, self.ssl_certfile, self.ssl_ca_certs
            check_tls(*(None if file is None else Path(file) for file in files))
            super().load()
        except SirenError as error:
            logs.failure(f"the worker does not start: {error}")
            sys.exit(1)


class _Parent(Multiprocess):
    """uvicorn's parent of workers, which serves on as long as one of them does.

    A worker that served and died is followed by another at once. One that ends before it serves, as
    where its bundle can be loaded no more, is followed after a pause, which grows each time; but
    where no other worker serves either, the parent has failed, and ends.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.has_failed = False
        self._served = WeakSet[Process]()
        self._failures: dict[int, int] = {}  # by a worker's place: starts in vain since one served
        self._due = WeakKeyDictionary[Process, float]()  # when the follower of a dead worker starts
        self._gauged: frozenset[int] = frozenset()  # workers that may have left gauges

    def keep_subprocess_alive(self) -> None:
        """Look after each worker; uvicorn does so twice a second."""
        # Were the parent's copy of a worker's end of the pipe left open, the pipe would not end
        # with the worker, and the parent would wait the whole of `timeout_worker_healthcheck` for
        # the answer of one that died, deaf to signals.
        for process in self.processes:
            process.child_conn.close()
        self._forget_gauges()
        for place, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if worker in self._due:
                if time.monotonic() >= self._due[worker]:
                    self._follow(place)
            elif not worker.is_alive(timeout=self.config.timeout_worker_healthcheck):
                self._bury(place, worker)
            elif worker not in self._served and worker.is_ready():
                self._served.add(worker)
                self._failures.pop(place, None)

    def _bury(self, place: int, worker: Process) -> None:
        worker.kill()  # it may hang
        worker.join()
        if worker in self._served:
            logs.alarm("a worker died, and another one starts", process=worker.pid)
            self._follow(place)
        elif any(other.is_ready() for other in self.processes):
            tries = self._failures[place] = self._failures.get(place, 0) + 1
            pause = _PAUSES_S[min(tries, len(_PAUSES_S)) - 1]
            self._due[worker] = time.monotonic() + pause
            logs.failure(
                "a worker did not start; the others serve on, and it is tried again",
                process=worker.pid,
                tries=tries,
                pause_s=pause,
            )
        else:
            self.has_failed = True
            self.should_exit.set()

    def _follow(self, place: int) -> None:
        self.processes[place] = Process(self.config, self.sockets)
        self.processes[place].start()

    def _forget_gauges(self) -> None:
        from prometheus_client.multiprocess import mark_process_dead  # by the environment then

        workers = [process.process for process in self.processes]
        living = frozenset(one.pid for one in workers if one.pid is not None and one.is_alive())
        for pid in self._gauged - living:  # died, or gave way to another
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # else they count for good
        self._gauged = living


def _serve_by_workers(settings: Settings, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="siren-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when prometheus_client is imported
        config = _WorkerConfig(
            "siren_serve.app:from_environment",
            factory=True,
            workers=settings.workers,
            **options,
        )
        parent = _Parent(config, sockets=[config.bind_socket()])
        parent.run()
        if parent.has_failed:
            raise BackendError("a worker did not start, and no other serves; see the lines above")
