"""Files of a loaded decoder or ensemble are changed: the same scores, or one clear error.

As `tests/runtime/test_files_of_a_loaded_guard.py` has it of a guard of one graph.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from changed_files import CHANGE_FILES, CHANGES, run_script

_CHANGE = (
    CHANGE_FILES
    + """
warnings.simplefilter("ignore")
texts = ["hello", "a longer text, of other bytes: 0123456789 and some", "\\u00e9\\u00e8 caf\\u00e9"]

def streamed(guard):
    with guard.stream(prompt=texts[0]) as stream:
        return [stream.feed(text).score for text in texts]

def told(call):
    try:
        return call()
    except SirenError as error:
        return f"{type(error).__name__}: {error}"
"""
)
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


@pytest.mark.parametrize(
    ("folder", "change"),
    [*(("decoder", change) for change in CHANGES), ("ensemble", "zeroed"), ("ensemble", "deleted")],
    indirect=["folder"],
)
def test_scores_spans_and_streams_stay_the_same_while_every_file_is_changed(
    change: str, folder: Path
) -> None:
    answer = run_script(_SCORES_WHILE, folder, change)
    assert answer["wrong"] == []
    assert answer["rounds"] > 8
    assert answer["spans"] > 0


@pytest.mark.parametrize("folder", ["decoder", "ensemble"], indirect=True)
@pytest.mark.parametrize("change", CHANGES)
def test_a_stream_that_is_first_opened_after_the_change_says_so(change: str, folder: Path) -> None:
    answer = run_script(_OPENS_AFTER, folder, change)
    for found in answer["found"]:
        assert found == answer["expected"] or re.match(r"BundleError: .*stream\.onnx: ", found)
    assert answer["same"]
