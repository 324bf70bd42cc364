"""siren calibrate of an ensemble: threshold and tiers of the mean of its members' scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from labelled import make_rows, write_jsonl
from siren_runtime import Guard
from siren_runtime.bundle.ensemble import read_ensemble
from siren_runtime.bundle.progress import silent
from siren_runtime.bundle.thresholds import Tier
from siren_runtime.errors import InputError
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.commands import calibrate
from siren_train.data.rows import Columns, read_all
from siren_train.data.sources import parse_source
from siren_train.measure.calibrate_spans import score_diluted_spans
from siren_train.measure.evaluate import Scores, score_rows
from siren_train.measure.threshold_rules import find_threshold
from tiny_bundle import edit_manifest, make_bundle

LABELS = ["hate", "violence"]
TIERS = ["--tier", "block=fpr:0.05", "--tier", "review=fpr:0.2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "ensemble"
    make_bundle(folder / "one")
    make_bundle(folder / "two", scale=2.0)
    (folder / "ensemble.json").write_text('{"format_version": 1, "members": ["one", "two"]}')
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "prompts.jsonl", make_rows(600))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(calibrate.app, [str(argument) for argument in arguments])


def scored(folder: Path, data: Path, split: str = "validation") -> Scores:
    guard = Guard.load(folder, **{**AS_LLM_SIREN, "long_text": "windows"})
    return score_rows(guard, [parse_source(str(data))], Columns(), split)


def test_threshold_and_tiers_suit_the_mean_of_the_scores(folder: Path, prompts: Path) -> None:
    before = scored(folder, prompts)
    done = run(folder, prompts, "--threshold", "best", *TIERS)
    assert done.exit_code == 0, done.output
    assert "block: from" in done.output
    written = read_ensemble(folder)
    assert written.members == ["one", "two"]
    assert written.threshold == find_threshold(before, "best")
    assert {tier.name: tier.threshold for tier in written.tiers} == {
        "block": find_threshold(before, "fpr:0.05"),
        "review": find_threshold(before, "fpr:0.2"),
    }
    guard = Guard.load(folder)
    assert guard.default_threshold == written.threshold
    assert [tier.name for tier in guard.judge.tiers] == ["block", "review"]
    safe = before.scores[~before.harmful]
    assert np.mean(safe >= written.tiers[0].threshold) <= 0.05


def test_responses_are_calibrated_by_their_own_rows(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(4_000))
    before = scored(folder, data)
    done = run(folder, data, "--responses", "--threshold", "fpr:0.1", "--tier", "block=fpr:0.05")
    assert done.exit_code == 0, done.output
    written = read_ensemble(folder)
    assert written.responses is not None
    for found, rows in (
        (written.responses, before.has_response),
        (written, ~before.has_response),
    ):
        assert found.threshold == find_threshold(before.of(rows), "fpr:0.1")
        assert found.tiers == [Tier("block", find_threshold(before.of(rows), "fpr:0.05"))]
    assert written.responses.threshold != written.threshold
    result = Guard.load(folder).score(prompt="Question", response="answer")
    assert result.threshold == written.responses.threshold
    again = run(folder, "--threshold", "0.4")
    assert "responses had thresholds of their own" in again.output
    assert (read_ensemble(folder).threshold, read_ensemble(folder).responses) == (0.4, None)


def test_too_few_responses_are_said_and_all_rows_choose(folder: Path, prompts: Path) -> None:
    before = scored(folder, prompts)
    done = run(folder, prompts, "--responses", "--threshold", "best")
    assert "fewer than 100 rows of a class with a response" in done.output
    written = read_ensemble(folder)
    assert (written.threshold, written.responses) == (find_threshold(before, "best"), None)


def test_labels_are_not_calibrated_by_an_ensemble(folder: Path) -> None:
    for name in ("one", "two"):
        edit_manifest(
            folder / name, lambda m: m["heads"]["harm"].update(activation="sigmoid", labels=LABELS)
        )
    before = (folder / "ensemble.json").read_bytes()
    done = run(folder, "--threshold", "0.5")
    assert isinstance(done.exception, InputError)
    assert "'harm' has labels" in str(done.exception)
    assert (folder / "ensemble.json").read_bytes() == before


def test_numbers_need_no_text_and_tiers_alone_keep_the_mean_threshold(folder: Path) -> None:
    mean = Guard.load(folder).default_threshold
    assert run(folder, "--tier", "block=0.9").exit_code == 0
    written = read_ensemble(folder)
    assert (written.threshold, [tier.threshold for tier in written.tiers]) == (mean, [0.9])


def test_spans_are_calibrated_on_the_mean_of_the_members(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        edit_manifest(folder / name, lambda m: m["text"].update(max_length=120))
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(3_100))
    rules = ["--spans", "fpr:0.1", "--diluted", "60"]
    done = run(folder, data, "--responses", "--threshold", "best", *rules)
    assert done.exit_code == 0, done.output
    written = read_ensemble(folder)
    assert [span.tokens for span in written.spans] == [32, 64, 128]
    assert written.responses is not None
    assert [span.tokens for span in written.responses.spans] == [32, 64, 128]
    guard = Guard.load(folder)
    read = read_all([parse_source(str(data))], Columns())
    rows = [row for row in read if row.split == "validation"]
    found = score_diluted_spans(guard, rows, rows, [60], silent, "harm")
    for decides, of in (
        (written.spans, ~found.has_response),
        (written.responses.spans, found.has_response),
    ):
        flagged = np.any(found.scores >= [span.threshold for span in decides], axis=1)
        assert 0.05 < np.mean(flagged[of & ~found.harmful]) <= 0.1
    # A new threshold leaves the spans; a number needs no text.
    assert run(folder, "--tier", "block=0.9").exit_code == 0
    assert read_ensemble(folder).spans == written.spans
    assert run(folder, "--spans", "0.75").exit_code == 0
    again = read_ensemble(folder)
    assert {span.threshold for span in again.spans} == {0.75}
    assert again.threshold == written.threshold
    assert again.responses is not None
    assert again.responses.spans == []


def test_tiers_go_by_the_spans_that_all_members_have_and_these_stay_theirs(
    folder: Path, prompts: Path
) -> None:
    spans = [{"tokens": 8, "threshold": 0.9}, {"tokens": 16, "threshold": 0.7}]
    stricter = [{**span, "threshold": span["threshold"] + 0.02} for span in spans]
    own = {"spans": spans, "responses": {"threshold": 0.5, "spans": stricter}}
    for name in ("one", "two"):
        edit_manifest(folder / name, lambda manifest: manifest.update(own))
    before = Guard.load(folder).judge.primary
    done = run(folder, prompts, "--tier", "block=fpr:0.1")
    assert done.exit_code == 0, done.output
    assert "spans of 8 tokens: from 0.9000" in done.output
    assert "responses, spans of 16 tokens: from 0.7200" in done.output
    read = read_all([parse_source(str(prompts))], Columns())
    safe = [row.given for row in read if row.split == "validation" and row.label == 0]
    with Guard.load(folder) as guard:
        tiers = [result.tier for result in guard.score_batch(safe)]
        by_text = [result.tier for result in guard.score_batch(safe, spans=False)]
        after = guard.judge.primary
    assert 0.05 < tiers.count("block") / len(safe) <= 0.1
    assert by_text.count("block") < tiers.count("block")
    written = read_ensemble(folder)
    assert written.spans == []
    assert written.responses is not None
    assert written.responses.spans == []
    for has_response in (False, True):
        assert after.of_text(has_response).spans == before.of_text(has_response).spans


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--threshold", "best"],
        ["--threshold", "0.5", "--temperature"],
        ["--threshold", "0.5", "--head", "harm"],
        ["--spans", "fpr:0.05"],
        ["--responses", "--threshold", "0.5"],
        ["--tier", "block"],
    ],
)
def test_what_an_ensemble_cannot_be_told_changes_nothing(folder: Path, options: list[str]) -> None:
    before = (folder / "ensemble.json").read_bytes()
    assert run(folder, *options).exit_code == 2
    assert (folder / "ensemble.json").read_bytes() == before


def test_tiers_that_are_equal_leave_the_file(folder: Path) -> None:
    before = (folder / "ensemble.json").read_bytes()
    done = run(folder, "--tier", "a=0.5", "--tier", "b=0.5")
    assert done.exit_code != 0
    assert (folder / "ensemble.json").read_bytes() == before
    (folder / "ensemble.json").write_text(json.dumps({"format_version": 1, "members": ["one"]}))
    assert run(folder, "--threshold", "0.5").exit_code != 0


def test_a_split_that_is_not_there_is_said(folder: Path, prompts: Path) -> None:
    done = run(folder, prompts, "--threshold", "best", "--split", "dev")
    assert isinstance(done.exception, InputError)
    assert "no rows of the 'dev' split" in str(done.exception)
