"""How many threads a generator's engine takes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from generators import need_genai
from siren_runtime.generation.engine import Engine
from siren_runtime.generation.folder import CONFIG_FILE

need_genai()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted by /proc")


def _threads_of(load: Callable[[], object]) -> int:
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    loaded = load()
    found = set(tasks.iterdir()) - before
    del loaded
    return len(found)


def _say_threads(folder: Path, threads: int) -> None:
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def test_without_a_number_it_takes_what_onnx_runtime_takes(copied: Path) -> None:
    Engine(copied, threads=1)  # what a first model starts and keeps is not counted
    expected = _threads_of(lambda: ort.InferenceSession(copied / "model.onnx"))
    assert _threads_of(lambda: Engine(copied)) == expected


def test_the_number_of_the_folders_config_holds(copied: Path) -> None:
    _say_threads(copied, 3)
    Engine(copied, threads=1)
    assert _threads_of(lambda: Engine(copied)) == 2
    assert _threads_of(lambda: Engine(copied, threads=1)) == 0
