"""Thresholds suit the scores that a guard gives: of a long text the highest of its windows."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from labelled import Rows, write_jsonl
from siren_command import siren
from siren_runtime import Guard
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import parse_source
from siren_train.measure.calibrate_spans import score_spans
from siren_train.measure.evaluate import score_rows
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


@pytest.mark.parametrize("make", [one, several])
def test_long_rows_score_as_a_guard_scores_prompt_and_response(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """The prompt by itself, and its end with every window of the response."""
    rows = [
        {
            "prompt": "a " * (number % 3) + HARM * (1 + 3 * number) + " ",
            "response": "b " * (5 * number) + HARM * (number % 4 + 1),
            "label": number % 2,
            "split": "validation",
        }
        for number in range(24)
    ]
    source = parse_source(str(write_jsonl(tmp_path / "data.jsonl", rows)))
    with Guard.load(make(tmp_path / "guard")) as guard:
        read = [*read_rows(source, Columns())]
        found = score_rows(guard, [source], Columns(), "validation").scores
        of_pairs, joined = (
            np.array([result.score for result in guard.score_batch(texts)])
            for texts in (
                [(row["prompt"], row["response"]) for row in rows],
                [row.text for row in read],
            )
        )
        spans = score_spans(guard, read, sizes=[8]).scores
        of_spans = guard.score_batch([(r["prompt"], r["response"]) for r in rows], spans=[8])
    np.testing.assert_array_equal(found, of_pairs)
    assert (of_pairs > joined + 0.05).any()
    fits = np.array([len(row.text) < MAX_LENGTH for row in read])
    np.testing.assert_array_equal(found[fits], joined[fits])
    assert 0 < fits.sum() < len(rows)
    expected = [max((span.score for span in one.spans), default=0.0) for one in of_spans]
    np.testing.assert_array_equal(spans[:, 0], expected)


def test_nothing_is_said_of_windows_where_all_rows_fit(tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"][-MAX_LENGTH + 1 :]} for row in late(60)]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    done = siren("calibrate", one(tmp_path / "guard"), data, "--threshold", "best")
    assert done.exit_code == 0, done.stderr
    assert "windows" not in done.stderr
