"""siren score, run as a person or a pipe would run it."""

import functools
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siren_command import SIREN, TIMEOUT_S, interrupt, rows, siren, start
from siren_runtime import Guard
from siren_runtime.commands.console import standard_input
from tiny_bundle import (
    CLASSES,
    WIDTH,
    make_bundle,
    make_model,
    make_tokenizer,
    save_model,
    seal,
)


def test_texts_of_the_command_line_are_scored_in_order(bundle: Path, guard: Guard) -> None:
    result = siren("score", bundle, "hello", "", "world")
    assert result.exit_code == 0
    assert result.stderr == ""
    for number, (row, text) in enumerate(zip(rows(result), ["hello", "", "world"], strict=True), 1):
        assert row.keys() == {"line", *guard.score(text).to_dict()}
        assert row["line"] == number
        assert row["score"] == pytest.approx(guard.score(text).score, abs=1e-5)


def test_a_file_of_plain_lines_is_scored(bundle: Path, tmp_path: Path, guard: Guard) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("hello\n\nworld\n", encoding="utf-8")
    scored = rows(siren("score", bundle, "--input", path))
    assert [row["line"] for row in scored] == [1, 3]
    assert scored[1]["score"] == pytest.approx(guard.score("world").score, abs=1e-5)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data"])
def test_a_file_of_json_lines_is_scored(
    bundle: Path, tmp_path: Path, guard: Guard, name: str
) -> None:
    path = tmp_path / name
    lines = [{"id": "x", "prompt": "a", "response": "b"}, {"text": "c"}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    first, second = rows(siren("score", bundle, "-i", path))
    assert first["id"] == "x"
    assert "line" not in first
    assert second["line"] == 2
    assert first["score"] == pytest.approx(guard.score(prompt="a", response="b").score, abs=1e-5)


def test_the_name_of_a_file_says_it_is_json(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('not json\n{"text": "a"}\n', encoding="utf-8")
    result = siren("score", bundle, "--input", path)
    assert result.exit_code == 1
    assert "line 1: not JSON" in result.stderr
    bad, good = rows(result)
    assert bad["line"] == 1
    assert bad["error"].startswith("not JSON")
    assert good["line"] == 2


def test_a_key_that_is_misspelt_is_an_error_and_no_verdict(bundle: Path) -> None:
    result = siren("score", bundle, input='{"promt": "a bomb", "response": "OK"}\n')
    assert result.exit_code == 1
    (row,) = rows(result)
    assert row.keys() == {"line", "error"}
    assert "unknown key 'promt'" in row["error"]
    assert "to pass it through, --keep promt" in result.stderr


def test_keys_that_are_named_are_passed_through(bundle: Path) -> None:
    kept: dict[str, Any] = {"label": 1, "why": {"a": [None, 0.1, "\u00fc"]}}
    lines = [{"text": "a", **kept}, {"text": "b", "id": 2, "label": None}, {"text": 3, "label": 4}]
    data = "\n".join(map(json.dumps, lines))
    result = siren("score", bundle, "--keep", "label", "--keep", "why", input=data)
    first, second, bad = rows(result)
    assert (next(iter(first)), list(first)[-2:]) == ("line", ["label", "why"])
    assert {key: first[key] for key in kept} == kept
    assert (second["id"], second["label"], "why" in second) == (2, None, False)
    assert bad.keys() == {"line", "error"}


def test_an_array_on_standard_input_is_rows(bundle: Path) -> None:
    data = json.dumps([{"text": "hello", "id": "x"}, "world", 3], indent=1)
    result = siren("score", bundle, input=data)
    assert result.exit_code == 1
    assert [row.get("id", row.get("line")) for row in rows(result)] == ["x", 2, 3]
    assert "line 3: expected an object or a string" in result.stderr


@pytest.mark.parametrize("name", ["texts.csv", "TEXTS.CSV", "texts.tsv", "texts.parquet"])
def test_a_table_is_refused_by_its_name_unless_its_lines_are_the_texts(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_text('text,label\n"hello\nworld",1\n', encoding="utf-8")
    result = siren("score", bundle, "--input", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{name} is a table" in result.stderr
    assert "--input-format lines" in result.stderr.replace("│", "").replace("\n", "")
    assert len(rows(siren("score", bundle, "--input", path, "--input-format", "lines"))) == 3


@pytest.mark.parametrize("format", ["jsonl", "table"])
def test_a_row_whose_score_is_not_finite_is_an_error_and_the_others_are_scored(
    tmp_path: Path, format: str
) -> None:
    folder = make_bundle(tmp_path / "bundle")
    vocabulary = make_tokenizer().get_vocab()
    embedding = np.zeros((len(vocabulary), WIDTH), np.float32)
    embedding[vocabulary["z"]] = np.nan
    save_model(make_model(embedding, np.zeros((WIDTH, CLASSES), np.float32)), folder)
    seal(folder)
    result = siren("score", folder, "--format", format, input="hello\nz\nworld\n")
    assert result.exit_code == 1
    assert result.stderr.count("is not finite") == 1
    assert "1 of 3" in result.stderr
    if format == "table":
        _, first, bad, last = (line.split() for line in result.stdout.splitlines())
        assert (first[:2], bad[:2], last[:2]) == (["1", "0.5000"], ["2", "error"], ["3", "0.5000"])
        return
    first, bad, last = rows(result)
    assert (first["score"], last["score"]) == (0.5, 0.5)
    assert bad.keys() == {"line", "error"}
    assert "not finite" in bad["error"]


def test_standard_input_is_scored_by_default_and_by_name(bundle: Path) -> None:
    piped = siren("score", bundle, input="hello\nworld\n")
    named = siren("score", bundle, "--input", "-", input="hello\nworld\n")
    assert piped.stdout == named.stdout
    assert len(rows(piped)) == 2


def test_input_that_does_not_wait_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb") as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        threading.Timer(0.2, lambda: (pipe.write(b"late\n"), pipe.flush())).start()
        assert standard_input().read1() == b"late\n"


@pytest.mark.parametrize(
    ("arguments", "closed", "message"),
    [
        (["score", "BUNDLE", "text"], 1, b"standard output is closed"),
        (["inspect", "BUNDLE", "--json"], 1, b"standard output is closed"),
        (["stream", "BUNDLE"], 0, b"standard input is closed"),
    ],
)
def test_a_closed_standard_stream_is_one_error(
    bundle: Path, arguments: list[str], closed: int, message: bytes
) -> None:
    words = [str(bundle) if word == "BUNDLE" else word for word in arguments]
    process = start(*words, preexec_fn=lambda: os.close(closed))
    stderr = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 1
    assert message in stderr
    assert stderr.count(b"\n") == 1


def test_help_that_cannot_be_written_is_one_error() -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("--version", stdout=full)
        stderr = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 1
    assert stderr == b"siren: error: [Errno 28] No space left on device\n"


def test_empty_input_is_no_error(bundle: Path) -> None:
    result = siren("score", bundle, input="")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_bad_lines_are_reported_by_number_and_scoring_goes_on(bundle: Path) -> None:
    data = b'{"text": "a"}\n{"text": 1}\n\xff\n{"id": 4}\n{"text": "e", "id": "five"}\n'
    result = siren("score", bundle, "--batch-size", 2, input=data)
    assert result.exit_code == 1
    named = [row.get("id", row.get("line")) for row in rows(result)]
    assert named == [1, 2, 3, 4, "five"]
    assert ["error" in row for row in rows(result)] == [False, True, True, True, False]
    errors = result.stderr.splitlines()
    assert [error.split(":")[1].strip() for error in errors] == [
        "line 2",
        "line 3",
        "line 4",
        "error",
    ]
    assert "3 of 5" in errors[-1]


def test_an_argument_that_is_not_utf8_is_reported_and_the_others_scored(bundle: Path) -> None:
    process = subprocess.run(
        [*SIREN, "score", str(bundle), b"caf\xe9", "fine"], capture_output=True, timeout=TIMEOUT_S
    )
    assert process.returncode == 1
    bad, good = map(json.loads, process.stdout.splitlines())
    assert (bad["line"], "error" in bad) == (1, True)
    assert (good["line"], "score" in good) == (2, True)
    assert process.stderr.startswith(b"siren: line 1: ")


def test_threshold_and_features(bundle: Path) -> None:
    (row,) = rows(siren("score", bundle, "hello", "--threshold", 0, "--features"))
    assert row["threshold"] == 0
    assert row["is_harmful"] is True
    assert len(row["features"]) == 6


def test_a_table_shows_the_verdicts_and_survives_markup_and_control_characters(
    bundle: Path,
) -> None:
    texts = ["[bold]not markup[/bold]", "\x1b[31mred\x07", "many\nlines", "مرحبا 🙂", "x" * 500]
    result = siren("score", bundle, "--format", "table", *texts)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["line", "score", "verdict", "part", "text"]
    assert len(lines) == 1 + len(texts)
    assert "[bold]not markup[/bold]" in lines[1]
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout


def test_the_names_of_rows_steer_no_terminal(bundle: Path) -> None:
    row = json.dumps({"id": "\x1b[31m\n[b]", "text": "hello"})
    result = siren("score", bundle, "--format", "table", input=row)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert "\\x1b[31" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_table_of_several_windows_has_one_header(bundle: Path) -> None:
    result = siren("score", bundle, "--format", "table", "--batch-size", 1, "a", "b", "c")
    assert result.stdout.count("verdict") == 1
    assert len(result.stdout.splitlines()) == 4


def test_a_terminal_gets_a_table(bundle: Path) -> None:
    terminal, end = pty.openpty()
    process = start("score", bundle, "hello", stdout=end)
    process.communicate(timeout=TIMEOUT_S)
    os.close(end)
    assert b"verdict" in os.read(terminal, 10_000)


def test_output_appears_while_input_is_still_open(bundle: Path) -> None:
    with start("score", bundle) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (1, 2, 3):
            process.stdin.write(f"text {number}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["line"] == number
        process.stdin.close()
        assert process.wait(TIMEOUT_S) == 0


def test_a_reader_that_leaves_early_gets_no_complaint(bundle: Path) -> None:
    with start("score", bundle, "--batch-size", 1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"first\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"second\n" * 100)
        process.stdin.close()
        assert process.stderr.read() == b""
        process.wait(TIMEOUT_S)


def test_an_interrupt_exits_130_without_a_traceback(bundle: Path) -> None:
    # A script in the background has its children ignore SIGINT.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with start("score", bundle, preexec_fn=heed) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"first\n")
        process.stdin.flush()
        process.stdout.readline()  # now it waits for more
        assert interrupt(process) == 130
        assert b"Traceback" not in process.stderr.read()
