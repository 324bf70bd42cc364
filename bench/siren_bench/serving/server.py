"""`siren serve` as a process of its own."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec

from siren_runtime.errors import SirenError

_START_S = 120


@dataclass(frozen=True)
class Server:
    """A server that is ready; `port` is of the loopback."""

    process: "subprocess.Popen[bytes]"
    port: int

    def info(self) -> dict[str, Any]:
        """What it says of itself, or the one of its workers that answers."""
        answer: dict[str, Any] = msgspec.json.decode(self._get("/info")[1])
        return answer

    def is_ready(self) -> bool:
        """Whether its guards have scored, and it is not about to end."""
        try:
            return self._get("/health/ready")[0] == 200
        except (OSError, HTTPException):
            return False

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@contextmanager
def server(bundle: Path, options: Sequence[object]) -> Iterator[Server]:
    """Run `siren serve` until the end of the block.

    Raises:
        SirenError: it does not become ready.
    """
    port = free_port()
    code = "from siren_serve.commands.serve import app; app()"
    arguments = [str(bundle), "--port", str(port), "--log-level", "error", *map(str, options)]
    running = Server(subprocess.Popen([sys.executable, "-c", code, *arguments]), port)
    try:
        wait_until(running.is_ready, running.process, "become ready")
        yield running
    finally:
        running.process.terminate()
        running.process.wait()


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Any, process: "subprocess.Popen[bytes]", what: str) -> float:
    """Wait for something of a server.

    Returns:
        The seconds that it took.

    Raises:
        SirenError: the process ended, or two minutes passed.
    """
    start = time.monotonic()
    while time.monotonic() < start + _START_S and process.poll() is None:
        if condition():
            return time.monotonic() - start
        time.sleep(0.05)
    raise SirenError(f"the server did not {what}; run siren serve by hand to see why")
