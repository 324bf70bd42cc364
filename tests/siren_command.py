"""Run the siren command as a person or a pipe would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from typer.testing import CliRunner, Result

from siren_runtime.commands.siren import app

SIREN = [sys.executable, "-c", "from siren_runtime.commands.siren import main; main()"]
TIMEOUT_S = 60


def siren(*arguments: object, input: str | bytes = b"") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def start(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*SIREN, *map(str, arguments)], **{"stdin": pipe, "stdout": pipe, "stderr": pipe} | options
    )


def interrupt(process: subprocess.Popen[bytes]) -> int:
    """Press Control-C until it ends. Python misses one that comes just before a blocking read."""
    for _ in range(TIMEOUT_S):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1)
    raise TimeoutError("it goes on")


def run_without(modules: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run siren as if `modules`, separated by spaces, were not installed."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules.split()}))\n"
        "from siren_runtime.commands.siren import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "COLUMNS": "100"},
    )
