"""Run the siren command as a person or a pipe would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
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


_RUN_WITHOUT = """
import contextlib, io, json, sys
modules, commands = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(modules))
from siren_runtime.commands.siren import main
for command in commands:
    sys.argv = ["siren", *command]
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def run_without(
    modules: str, *commands: Sequence[object]
) -> list[subprocess.CompletedProcess[str]]:
    """Run siren as if `modules`, separated by spaces, were not installed: once a command's list.

    All in one process, one after another, since starting one is what takes the time.
    """
    words = [[str(word) for word in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_WITHOUT, json.dumps([modules.split(), words])],
        capture_output=True,
        check=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "COLUMNS": "100"},
    )
    ends = map(json.loads, done.stdout.splitlines())
    return [subprocess.CompletedProcess(w, *end) for w, end in zip(words, ends, strict=True)]
