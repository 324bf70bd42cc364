"""Running the application in uvicorn: one process, or a parent with several workers."""

import os
import signal
import sys
import tempfile
from typing import Any

import uvicorn

from siren_runtime.errors import BackendError

from . import logs
from .app import ENVIRONMENT, make_app
from .limits import allow_open_files
from .protocol import BoundedProtocol
from .settings import Settings
from .workers import LOG_LEVEL, Parent, WorkerConfig

_END_S = 30  # beyond the timeout of requests, for those under way when the server ends
_OTHER_FILES = 256  # that a process has open beside connections


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
    os.environ[LOG_LEVEL] = log_level
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
    of_models = [one.timeout_s for one in (settings.proxy, settings.generate) if one is not None]
    longest = max([settings.timeout_s, *of_models])
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
    }


def _serve_by_workers(settings: Settings, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="siren-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when prometheus_client is imported
        config = WorkerConfig(
            "siren_serve.app:from_environment",
            factory=True,
            workers=settings.workers,
            **options,
        )
        parent = Parent(config, sockets=[config.bind_socket()])
        parent.run()
        if parent.has_failed:
            raise BackendError("a worker did not start, and no other serves; see the lines above")
