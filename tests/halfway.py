"""Processes that are in the midst of writing, as those of other containers are."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_NUMBERED = """
import os, sys

os.getpid = lambda: int(sys.argv[2])  # as in another container, which counts processes for itself
"""
# Begins a process of that number; gives it, and the place that it has begun to write.
Start = Callable[[int], tuple[subprocess.Popen[str], Path]]


@contextmanager
def halfway(script: str, path: Path) -> Iterator[Start]:
    """Yield what starts a script on a path, its first argument; all are killed at the end.

    Args:
        script: it says where it writes in its first line, and waits for the end of its input.
    """
    running = []

    def start(pid: int) -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", _NUMBERED + script, str(path), str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in running:
        process.kill()
        process.communicate()
