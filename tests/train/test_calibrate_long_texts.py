"""Thresholds suit the scores that a guard gives: of a long text the highest of its windows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from labelled import Rows, write_jsonl
from siren_command import siren
from siren_runtime import Guard
from tiny_bundle import HARM, MAX_LENGTH, make_alarm


def late(count: int) -> Rows:
    """Rows that differ beyond their first window alone; harmful ones have more of what is harm."""
    return [
        {
            "text": "a " * MAX_LENGTH + HARM * (1 + number % 10 + 10 * (number % 2)),
            "label": number % 2,
            "split": "validation",
        }
        for number in range(count)
    ]


def one(folder: Path) -> Path:
    return make_alarm(folder, 4.0)


def several(folder: Path) -> Path:
    for name, steepness in (("one", 4.0), ("two", 5.0)):
        make_alarm(folder / name, steepness)
    members = {"format_version": 1, "members": ["one", "two"]}
    (folder / "ensemble.json").write_text(json.dumps(members))
    return folder


@pytest.mark.parametrize("make", [one, several])
def test_a_threshold_holds_for_long_texts_as_a_guard_reads_them(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder, rows = make(tmp_path / "guard"), late(60)
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    rules = "--threshold", "fpr:0.2", "--tier", "block=fpr:0"
    done = siren("calibrate", folder, data, *rules)
    assert done.exit_code == 0, done.stderr
    assert f"60 of 60 rows have more than {MAX_LENGTH} tokens" in done.stderr
    with Guard.load(folder) as guard:
        safe = guard.score_batch([row["text"] for row in rows if row["label"] == 0])
        harmful = guard.score_batch([row["text"] for row in rows if row["label"] == 1])
    assert 0 < sum(bool(result.is_harmful) for result in safe) <= 0.2 * len(safe)
    assert {result.tier for result in safe} == {None}
    assert {result.tier for result in harmful} == {"block"}


def test_nothing_is_said_of_windows_where_all_rows_fit(tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"][-MAX_LENGTH + 1 :]} for row in late(60)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    done = siren("calibrate", one(tmp_path / "guard"), data, "--threshold", "best")
    assert done.exit_code == 0, done.stderr
    assert "windows" not in done.stderr
