"""A real server on the loopback: in a thread of the test, or as the command is run."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from siren_serve.app import make_app
from siren_serve.guards import Guards, Served
from siren_serve.server import uvicorn_options
from siren_serve.settings import Settings
from waiting import WAIT_S, eventually


@dataclass(frozen=True)
class Running:
    """A server in a thread."""

    url: str
    guards: Guards
    client: httpx.Client
    server: uvicorn.Server

    @property
    def served(self) -> Served:
        return self.guards.get(None)

    def metric(self, line: str) -> float:
        """The value of one line of /metrics; 0 where it is not there."""
        for found in self.client.get("/metrics").text.splitlines():
            if found.startswith(line):
                return float(found.rpartition(" ")[2])
        return 0.0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the engine's only thread busy."""
        begun, go_on = threading.Event(), threading.Event()

        def hold(_: Any) -> bool:
            begun.set()
            return go_on.wait(WAIT_S)

        self.served.guard.dispatcher.with_streams(hold)
        assert begun.wait(WAIT_S)
        try:
            yield
        finally:
            go_on.set()


@contextlib.contextmanager
def running(guards: dict[str, str], **settings: Any) -> Iterator[Running]:
    """Serve in a thread until the end of the block."""
    made = Settings(guards=guards, **settings)
    app = make_app(made)
    server = uvicorn.Server(uvicorn.Config(app, port=0, **uvicorn_options(made)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started or not thread.is_alive())
    assert server.started, "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=WAIT_S) as client:
        yield Running(url, app.guards, client, server)
    server.should_exit = True
    thread.join(WAIT_S)
    assert not thread.is_alive()


@dataclass(frozen=True)
class Command:
    """A server that `siren serve` runs."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    tls: ssl.SSLContext | None = None

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"{self.url}/health/ready", verify=self.tls or True)
            return answer.status_code == 200
        return False

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        text = self.log.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # the last line may be under way
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


@contextlib.contextmanager
def command(
    folder: Path, *arguments: object, tls: ssl.SSLContext | None = None, **environment: str
) -> Iterator[Command]:
    """Run `siren serve` on a free port until the end of the block; it is ready then.

    Args:
        tls: by which a client reaches a server that has a certificate.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from siren_serve.commands.serve import app; app()"
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments), "--port", str(port)],
            stderr=stream,
            env={**os.environ, **environment},
        )
    served = Command(process, f"http{'s' if tls else ''}://127.0.0.1:{port}", log, tls)
    try:
        eventually(lambda: served.is_ready() or process.poll() is not None)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
