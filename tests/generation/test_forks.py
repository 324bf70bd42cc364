"""A process that forks beside an open generation is not held up by it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from generators import need_genai

need_genai()
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
_FORK = """
import json, os, sys, threading, time
from siren_runtime import GuardedGenerator, Sampling, SirenError
from siren_runtime.generation.engine import Run

folder, threads, rows, what = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
generator = GuardedGenerator.load(folder, threads=threads)
prompts = ["The history of bread begins", "No", "How can I sleep better?"][:rows]

def begin():
    greedy = Sampling(temperature=0)
    return generator.generate_batch(prompts, sampling=greedy, threshold=1.0, max_tokens=12)

expected = [[piece.token for piece in one] for one in begin()]
generations = begin()
found = [[next(one).token] for one in generations]
steps, amid, go_on = Run.steps, threading.Event(), threading.Event()
def wait(run):
    amid.set()
    go_on.wait()
    return steps(run)
if what.endswith("amid-a-step"):
    Run.steps = wait
    thread = threading.Thread(target=lambda: found[0].append(next(generations[0]).token))
    thread.start()
    amid.wait()
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    answer = {}
    try:
        if what.startswith("iterate"):
            next(generations[-1])
        if what == "read":
            generator.read("Bread", "is baked")
        if what.startswith("close"):
            for one in generations:
                one.close()
            del generator, generations, one
    except SirenError as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    os.write(writing, json.dumps(answer).encode())
    sys.exit(0)
os.close(writing)
deadline = time.monotonic() + 20
while True:
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended or time.monotonic() > deadline:
        break
    time.sleep(0.01)
if not ended:
    os.kill(child, 9)
answer = json.loads(os.read(reading, 1 << 16) or b"{}")
if amid.is_set():
    go_on.set()
    thread.join()
for one, tokens in zip(generations, found):
    tokens += [piece.token for piece in one]
print(json.dumps({**answer, "ended": bool(ended), "status": status, "same": found == expected}))
"""


def _fork(folder: Path, threads: int, rows: int, what: str) -> dict[str, Any]:
    """Fork with generations of `rows` prompts begun; what became of the child, and of them."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK, str(folder), str(threads), str(rows), what],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("what", ["exit", "close", "close-amid-a-step"])
def test_a_child_with_an_open_generation_ends(
    grafted: Path, threads: int, rows: int, what: str
) -> None:
    assert _fork(grafted, threads, rows, what) == {"ended": True, "status": 0, "same": True}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("rows", "what"), [(1, "iterate"), (3, "iterate"), (1, "read"), (3, "iterate-amid-a-step")]
)
def test_a_child_that_goes_on_with_a_generation_is_refused(
    grafted: Path, threads: int, rows: int, what: str
) -> None:
    answer = _fork(grafted, threads, rows, what)
    assert answer.pop("error").startswith("BackendError: the guard was loaded in process")
    assert answer == {"ended": True, "status": 0, "same": True}
