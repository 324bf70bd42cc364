"""A row that is too large to read is named before any work, by every command that reads rows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clock import Clock
from labelled import make_rows, write_jsonl
from siren_command import siren
from siren_runtime.errors import InputError
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import parse_source
from tiny_bundle import make_alarm

LARGE = "<" * 10_000_000
COMMANDS = {
    "extract": ("extract", "BACKBONE", "DATA", "-o", "OUTPUT"),
    "evaluate": ("evaluate", "BUNDLE", "DATA", "-o", "OUTPUT"),
    "windows": ("evaluate", "BUNDLE", "DATA", "-o", "OUTPUT", "--long-text", "windows"),
    "diluted": ("evaluate", "BUNDLE", "DATA", "-o", "OUTPUT", "--diluted", 100),
    "disguised": ("evaluate", "BUNDLE", "DATA", "-o", "OUTPUT", "--disguised"),
    "streaming": ("evaluate", "BUNDLE", "DATA", "-o", "OUTPUT", "--streaming"),
    "calibrate": ("calibrate", "BUNDLE", "DATA", "--split", "test", "--threshold", "best"),
    "rollouts": ("rollouts", "DATA", "-o", "OUTPUT"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which the third has a response of ten megabytes, and is of the test split."""
    large = {"id": "large", "prompt": "How?", "response": LARGE, "label": 1, "split": "test"}
    rows = [{**row, "response": row["response"] or "no"} for row in make_rows(40)]
    return write_jsonl(tmp_path_factory.mktemp("large") / "data.jsonl", [*rows[:2], large, *rows])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_row_of_ten_megabytes_is_named_before_any_row_is_tokenized(
    name: str,
    data: Path,
    tmp_path: Path,
    backbone_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, output = make_alarm(tmp_path / "bundle", steepness=4.0), tmp_path / "output"
    guard = (bundle / "guard.json").read_bytes()
    places = {"BUNDLE": bundle, "DATA": data, "OUTPUT": output, "BACKBONE": backbone_folder("bert")}
    clock = Clock(monkeypatch)
    run = siren(*(places.get(str(word), word) for word in COMMANDS[name]))
    assert run.exit_code == 1
    *_, line = run.stderr.splitlines()
    assert f"{data}, row 3: the text has 10,000,0" in line
    assert line.endswith("raise the bound (max_bytes_per_text, --max-bytes)")
    assert clock.characters == 0
    assert not output.exists()
    assert (bundle / "guard.json").read_bytes() == guard


@pytest.mark.parametrize("words", [(), ("--streaming", "--words", 2)])
def test_a_larger_row_is_read_where_that_is_asked_for(
    words: tuple[object, ...], tmp_path: Path
) -> None:
    rows = [{**row, "response": row["response"] or "no"} for row in make_rows(40)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    bundle = make_alarm(tmp_path / "bundle", steepness=4.0)
    command = "evaluate", bundle, data, *words, "--max-bytes"
    assert siren(*command, 200).exit_code == 0
    run = siren(*command, 10)
    assert "bytes or more, at most 10 are read" in run.stderr


def test_what_a_trajectory_and_its_tools_hold_counts_together(tmp_path: Path) -> None:
    tool = {"name": "run", "description": "x" * 900}
    messages = [{"role": "user", "content": "y" * 900}]
    row = {"messages": messages, "tools": [tool], "label": 1, "split": "test"}
    source = parse_source(str(write_jsonl(tmp_path / "runs.jsonl", [row])))
    (read,) = read_rows(source, Columns(trajectories=True, max_bytes=4000))
    assert read.trajectory is not None
    with pytest.raises(InputError, match=r"runs\.jsonl, row 1: the text has .* at most 1,000"):
        list(read_rows(source, Columns(trajectories=True, max_bytes=1000)))
