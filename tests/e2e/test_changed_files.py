"""Files of a loaded decoder or ensemble are changed: the same scores, or one clear error.

As `tests/runtime/test_files_of_a_loaded_guard.py` has it of a guard of one graph.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHANGES = ["overwritten", "zeroed", "truncated", "deleted"]
# In a process of its own, for it may end by a signal.
_CHANGE = """
import json, os, sys, threading, time, warnings
from pathlib import Path
from siren_runtime import Guard, SirenError

warnings.simplefilter("ignore")
folder, change = Path(sys.argv[1]), sys.argv[2]
texts = ["hello", "a longer text, of other bytes: 0123456789 and some", "\\u00e9\\u00e8 caf\\u00e9"]

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

def streamed(guard):
    with guard.stream(prompt=texts[0]) as stream:
        return [stream.feed(text).score for text in texts]

def told(call):
    try:
        return call()
    except SirenError as error:
        return f"{type(error).__name__}: {error}"
"""
_SCORES_WHILE = (
    _CHANGE
    + """
guard = Guard.load(folder, threads=1, spans=[8, 16], streaming=True)

def read():
    results = [result.to_dict() for result in guard.score_batch(texts)]
    return results, streamed(guard)

expected = read()
stop, wrong, rounds = threading.Event(), [], []

def work():
    while not stop.is_set():
        found = told(read)
        rounds.append(1)
        if found != expected:
            wrong.append(found)

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for _ in change_files():
    done = len(rounds)
    while len(rounds) < done + 8:
        time.sleep(0.001)
stop.set()
for thread in threads:
    thread.join()
spans = sum(len(result.get("spans", [])) for result in expected[0])
print(json.dumps({"wrong": wrong[:3], "rounds": len(rounds), "spans": spans}))
"""
)
_OPENS_AFTER = (
    _CHANGE
    + """
with Guard.load(folder, threads=1) as before:
    expected = streamed(before)
guard = Guard.load(folder, threads=1)
scores = [result.score for result in guard.score_batch(texts)]
for _ in change_files():
    pass
found = [told(lambda: streamed(guard)) for _ in range(2)]
same = [result.score for result in guard.score_batch(texts)] == scores
print(json.dumps({"expected": expected, "found": found, "same": same}))
"""
)


@pytest.fixture
def folder(request: Any, export: Callable[..., Any], tmp_path: Path) -> Path:
    """A copy of a decoder's bundle, or of an ensemble of two."""
    folder = tmp_path / "guard"
    bundles = {name: export(name).bundle for name in ("qwen3", "llama")}
    if request.param == "decoder":
        shutil.copytree(bundles["qwen3"], folder)
        return folder
    for name, bundle in bundles.items():
        shutil.copytree(bundle, folder / name)
    ensemble = {"format_version": 1, "members": [*bundles], "threshold": 0.5}
    (folder / "ensemble.json").write_text(json.dumps(ensemble))
    return folder


def _run(code: str, *arguments: object) -> dict[str, Any]:
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


@pytest.mark.parametrize(
    ("folder", "change"),
    [*(("decoder", change) for change in CHANGES), ("ensemble", "zeroed"), ("ensemble", "deleted")],
    indirect=["folder"],
)
def test_scores_spans_and_streams_stay_the_same_while_every_file_is_changed(
    change: str, folder: Path
) -> None:
    answer = _run(_SCORES_WHILE, folder, change)
    assert answer["wrong"] == []
    assert answer["rounds"] > 8
    assert answer["spans"] > 0


@pytest.mark.parametrize("folder", ["decoder", "ensemble"], indirect=True)
@pytest.mark.parametrize("change", CHANGES)
def test_a_stream_that_is_first_opened_after_the_change_says_so(change: str, folder: Path) -> None:
    answer = _run(_OPENS_AFTER, folder, change)
    for found in answer["found"]:
        assert found == answer["expected"] or re.match(r"BundleError: .*stream\.onnx: ", found)
    assert answer["same"]
