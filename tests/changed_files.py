"""Scripts that change a guard's files, each in a process of its own, for it may end by a signal."""

import json
import subprocess
import sys
from typing import Any

CHANGES = ["overwritten", "zeroed", "truncated", "deleted"]
# `folder` and `change` are the script's arguments; it goes on behind each file that is changed.
CHANGE_FILES = """
import json, os, sys, threading, time, warnings
from pathlib import Path
from siren_runtime import Guard, SirenError

folder, change = Path(sys.argv[1]), sys.argv[2]

def change_files():
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        if change == "overwritten":
            with path.open("r+b") as file:
                file.write(os.urandom(size))
        elif change == "zeroed":
            with path.open("r+b") as file:
                file.write(bytes(size))
        elif change == "truncated":
            os.truncate(path, 0)
        elif change == "deleted":
            path.unlink()
        yield
"""


def run_script(code: str, *arguments: object) -> dict[str, Any]:
    """Run a script; what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
