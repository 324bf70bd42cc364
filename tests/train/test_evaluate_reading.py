"""siren evaluate reads texts as asked for, and its report says how."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calibrated import write_calibration
from labelled import write_jsonl
from siren_command import siren
from siren_runtime import Guard
from siren_runtime.bundle.thresholds import SpanThreshold
from siren_train.measure.evaluate import Evaluation
from siren_train.measure.evaluation_tables import evaluation_markdown
from siren_train.measure.stated import StatedReading, stated_reading
from tiny_bundle import HARM, MAX_LENGTH, make_alarm

PLAIN = "nothing to see here. "
ROWS = [
    {"category": name, "prompt": prompt, "response": response, "label": label, "split": "test"}
    for name, prompt, response, label in (
        ("all", HARM * 20, None, 1),
        ("amid the beginning", "plain words, " + HARM * 8, "and more", 1),
        ("far behind", PLAIN * 4 + HARM * MAX_LENGTH, None, 1),
        ("amid the end", PLAIN * 4 + HARM * 8 + " and so on", None, 1),
        ("none", PLAIN * 5, None, 0),
    )
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard that looks for spans of 8 tokens in texts of 32."""
    folder = make_alarm(tmp_path_factory.mktemp("alarm") / "bundle", 8)
    write_calibration(folder, threshold=0.97, spans=[SpanThreshold(8, 0.99)])
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", ROWS)


def evaluated(bundle: Path, data: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """The printed report and the written one."""
    output = data.parent / "report"
    done = siren("evaluate", bundle, data, "-o", output, "--threads", 1, *options)
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads((output / "evaluation.json").read_text())


READ = {
    (): (("truncate", []), "long texts read by their beginning, without spans", {"all"}),
    ("--spans",): (
        ("truncate", [8]),
        "long texts read by their beginning, with spans of 8 tokens",
        {"all", "amid the beginning"},
    ),
    ("--long-text", "windows", "--no-spans"): (
        ("windows", []),
        "long texts read in windows, without spans",
        {"all", "far behind"},
    ),
    ("--long-text", "windows", "--spans"): (
        ("windows", [8]),
        "long texts read in windows, with spans of 8 tokens",
        {"all", "amid the beginning", "far behind", "amid the end"},
    ),
}


@pytest.mark.parametrize("options", READ, ids=" ".join)
def test_rows_are_flagged_by_what_is_read(
    bundle: Path, data: Path, options: tuple[str, ...]
) -> None:
    (long_text, spans), told, expected = READ[options]
    printed, report = evaluated(bundle, data, "--by", "category", *options)
    (guard_line,) = [line for line in printed.splitlines() if line.startswith("Guard: ")]
    assert guard_line.endswith(f"**, {told}.")
    assert (report["long_text"], report["spans"]) == (long_text, spans)
    found = report["by_category"]["data"]
    assert {name for name, m in found.items() if m["recall"]} == expected
    assert found["none"]["accuracy"] == 1.0
    guard, texts = Guard.load(bundle), [(row["prompt"], row["response"]) for row in ROWS]
    results = guard.score_batch(texts, long_text=long_text, spans=bool(spans))
    flagged = {row["category"] for row, r in zip(ROWS, results, strict=True) if r.is_harmful}
    assert flagged == expected
    if spans and long_text == "windows":
        assert [r.is_harmful for r in guard.score_batch(texts)] == [r.is_harmful for r in results]


def test_where_no_head_has_thresholds_of_spans_none_are_read(tmp_path: Path, data: Path) -> None:
    plain = make_alarm(tmp_path / "plain", 8)
    printed, report = evaluated(plain, data, "--long-text", "windows", "--spans")
    assert ", long texts read in windows, without spans." in printed
    assert report["spans"] == []
    assert stated_reading(Guard.load(plain)) == StatedReading("windows", [])
    assert stated_reading(Guard.load(plain, spans=[8])) == StatedReading("windows", [8])


def test_disguised_texts_are_read_as_asked_for(bundle: Path, data: Path) -> None:
    def disguised(*options: str) -> tuple[str, dict[str, Any]]:
        output = data.parent / "report"
        run = siren("evaluate", bundle, data, "--disguised", "-o", output, *options)
        assert run.exit_code == 0, run.output
        return run.stdout, json.loads((output / "disguised.json").read_text())

    printed, report = disguised()
    assert ", long texts read by their beginning, without spans. " in printed
    assert report["results"]["data"]["as written"]["recall"] == pytest.approx(1 / 3)
    printed, report = disguised("--long-text", "windows", "--spans")
    assert ", long texts read in windows, with spans of 8 tokens. " in printed
    assert (report["long_text"], report["spans"]) == ("windows", [8])
    assert report["results"]["data"]["as written"]["recall"] == 1.0


def test_a_report_of_before_says_nothing_of_it(bundle: Path, data: Path) -> None:
    _, report = evaluated(bundle, data)
    old = {name: v for name, v in report.items() if name not in ("long_text", "spans", "by_group")}
    (line,) = [
        line
        for line in evaluation_markdown(msgspec.convert(old, Evaluation)).splitlines()
        if line.startswith("Guard: ")
    ]
    assert line.endswith("**.")


def test_categories_of_one_group_are_measured_together(bundle: Path, tmp_path: Path) -> None:
    """A category of one class has no macro-F1; a language of several such has one."""
    kinds = {"fr: request": HARM * 20, "fr: question": PLAIN, "de: request": PLAIN, "other": PLAIN}
    rows = [
        {"text": text, "label": int("request" in kind), "category": kind, "split": "test"}
        for kind, text in kinds.items()
    ]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    printed, report = evaluated(bundle, data, "--by", "category")
    assert {name: [*groups] for name, groups in report["by_group"].items()} == {"data": ["fr"]}
    assert "| fr | 2 | 1 | 1.000 | 1.000 |" in printed
    assert "| fr: request | 1 | 1 | - | 1.000 | 1.000 | 1.000 |" in printed
    assert "| de: request | 1 | 1 | - | 0.000 | - | 0.000 |" in printed
    assert "| other | 1 | 0 | - | 1.000 |" in printed
    _, plain = evaluated(bundle, data)
    assert (plain["by_category"], plain["by_group"]) == ({}, {})
