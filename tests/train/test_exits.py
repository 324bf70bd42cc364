"""Exits from labelled text to a guard that leaves early, as a person would make them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from calibrated import write_calibration
from exits import export_with_exits, set_bounds
from guards import load_guard
from labelled import make_rows, write_jsonl
from siren_bench.cli import app as bench
from siren_bench.subjects.macro_f1 import macro_f1
from siren_export.commands import export
from siren_export.heads.registry import load_artifact
from siren_runtime import Guard
from siren_runtime.bundle.progress import silent
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold
from siren_runtime.commands.siren import app as siren
from siren_runtime.errors import InputError
from siren_train.commands import calibrate, evaluate, extract, train
from siren_train.data.rows import Columns
from siren_train.measure.cascade import score_exits
from siren_train.measure.metrics import calibration_error
from tiny_bundle import make_bundle
from upstream import Script, chat_of, model_server


def run(app: object, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_clear_texts_leave_a_guard_that_was_trained_with_exits(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(200))
    backbone, store, head = backbone_folder("bert"), tmp_path / "store", tmp_path / "head"
    bundle = tmp_path / "bundle"

    def done(app: object, *arguments: object) -> str:
        result = run(app, *arguments)
        assert result.exit_code == 0, result.output
        return result.output

    done(extract.app, backbone, data, "-o", store, "--max-length", 48, "--threads", 1)
    options = ("--trials", 1, "--members", 2, "--share", 0.9, "--hold-out-validation")
    output = done(train.app, store, "-o", head, *options, "--exits", "1,2")
    assert "exit behind 2 blocks: cross-validated macro-F1" in output
    for depth in (1, 2):
        found = load_artifact(head / "exits" / str(depth))
        assert found.head.taps.deepest < depth
        assert (head / "exits" / str(depth) / "training.md").is_file()
        assert (head / ".work" / "exits" / str(depth) / "probe.0.npz").is_file()

    done(export.app, head, "--exits", "1,2", "-o", bundle, "--no-verify")
    shown = done(siren, "inspect", bundle)
    assert "has no bounds: siren calibrate --cascade" in shown
    output = done(calibrate.app, bundle, data, "--cascade", "--loss", 0, "--threads", 1)
    assert "no exit decides; the rows are too few" in output
    output = done(calibrate.app, bundle, data, "--cascade", "--loss", 10, "--threads", 1)
    assert "mean cost" in output
    cascade = load_bundle(bundle).manifest.cascade
    assert cascade is not None
    assert cascade.decides
    assert cascade.rows == 40
    assert cascade.cost < 1
    assert "of the blocks on 40 rows" in done(siren, "inspect", bundle)

    output = done(evaluate.app, bundle, data, "-o", tmp_path / "report", "--threads", 1)
    assert "**Mean cost" in output
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())["exits"]
    assert report["cost"] < 1
    assert sum(report["exits"].values()) == pytest.approx(1)
    guard = Guard.load(bundle, threads=1)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    test = [row for row in rows if row["split"] == "test"]
    results = guard.score_batch([(row["prompt"], row["response"]) for row in test])
    early = [result for result in results if result.exit]
    assert early
    blocks = guard.manifest.backbone.blocks_kept
    assert len(early) / len(test) == pytest.approx(1 - report["exits"].get(str(blocks), 0))

    arguments = (bundle, data, "--rows", 8, "--rounds", 1, "-o", tmp_path / "record.json")
    assert "cost in blocks" in done(bench, "cascade", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cascade",),
        ("DATA", "--cascade", "--threshold", "best"),
        ("DATA", "--cascade", "--head", "harm"),
    ],
)
def test_exits_are_calibrated_by_themselves(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    given = [str(data) if argument == "DATA" else argument for argument in arguments]
    result = run(calibrate.app, tmp_path, *given)
    assert result.exit_code == 2
    assert "--cascade takes labelled text" in result.output


@pytest.fixture(scope="module")
def leaving(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Path:
    """A guard whose exits decide on some texts, by scores that are not the whole guard's."""
    return export_with_exits(tmp_path_factory.mktemp("exits"), backbone_folder("bert"))


def test_rows_are_ranked_by_the_whole_guard(leaving: Path, tmp_path: Path) -> None:
    rows = [{**row, "response": None} for row in make_rows(120) if row["split"] == "test"]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    texts, harmful = [row["prompt"] for row in rows], [row["label"] == 1 for row in rows]
    early, whole = load_guard(leaving), load_guard(leaving, exits=False)
    scores = [result.score for result in whole.score_batch(texts)]
    expected = roc_auc_score(harmful, scores)
    assert roc_auc_score(harmful, [one.score for one in early.score_batch(texts)]) != expected

    def evaluated(report: str, *options: object) -> tuple[str, Any]:
        done = run(siren, "evaluate", leaving, data, "-o", tmp_path / "report", *options)
        assert done.exit_code == 0, done.output
        return done.stdout, json.loads((tmp_path / "report" / f"{report}.json").read_text())

    told, found = evaluated("evaluation")
    metrics = found["by_dataset"]["data"]
    assert metrics["auroc"] == pytest.approx(expected)
    error = calibration_error(np.array(harmful), np.array(scores))
    assert metrics["expected_calibration_error"] == pytest.approx(error)
    flagged = [one.is_harmful for one in early.score_batch(texts)]
    assert metrics["accuracy"] == pytest.approx(np.mean(np.array(flagged) == harmful))
    assert "average precision and calibration error are the whole guard's" in told
    _, found = evaluated("disguised", "--disguised")
    assert found["results"]["data"]["as written"]["auroc"] == pytest.approx(expected)
    _, found = evaluated("diluted", "--diluted", "8")
    alone = {one["way"]: one["auroc"] for one in found["results"] if one["place"] == "alone"}
    assert alone["beginning"] == pytest.approx(expected)


def test_a_judge_of_rollouts_scores_as_the_whole_guard(leaving: Path, tmp_path: Path) -> None:
    rows = [{**row, "response": "yes"} for row in make_rows(30)]
    data, output = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "targets.jsonl"
    with model_server() as server:
        server.script = Script(whole=chat_of({"content": " and so on"}))
        asked = ["--generator", server.url, "--model", "small", "--judge", leaving]
        done = run(siren, "rollouts", data, "-o", output, *asked, "--rollouts", 1)
    assert done.exit_code == 0, done.output
    targets = [json.loads(line) for line in output.read_text().splitlines()]
    texts = [(one["prompt"], one["prefix"] + " and so on") for one in targets]
    early, whole = (Guard.load(leaving, exits=exits, max_unknown=1.0) for exits in (True, False))
    scores = [one.score for one in whole.score_batch(texts)]
    assert any(one.exit for one in early.score_batch(texts))
    assert [one["target"] for one in targets] == pytest.approx(scores, abs=1e-6)


def test_the_cost_is_of_the_tokens_that_are_read(leaving: Path, tmp_path: Path) -> None:
    rows = [row for row in make_rows(120) if row["split"] == "test"]
    rows.append({**rows[0], "id": "long", "prompt": "a fox and a dog " * 100, "response": None})
    data, output = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "report"
    guard = load_guard(leaving)
    at_once, blocks = guard.manifest.text.max_length, guard.manifest.backbone.blocks_kept
    results = guard.score_batch([(row["prompt"], row["response"]) for row in rows])
    assert max(one.tokens for one in results) > 4 * at_once
    read = np.array([min(one.tokens, at_once) for one in results])
    depths = np.array([one.exit or blocks for one in results])
    cost = (read * depths).sum() / (read.sum() * blocks)

    def evaluated(*options: object) -> tuple[str, Any]:
        done = run(siren, "evaluate", leaving, data, "-o", output, *options)
        assert done.exit_code == 0, done.output
        return done.stdout, json.loads((output / "evaluation.json").read_text())["exits"]

    told, exits = evaluated()
    assert exits["cost"] == pytest.approx(cost)
    assert f"**Mean cost {cost:.3f}**" in told
    told, exits = evaluated("--long-text", "windows")
    assert exits["cost"] is None
    assert "No mean cost is told of rows that are read in windows" in told
    record = tmp_path / "record.json"
    done = run(bench, "cascade", leaving, data, "--rounds", 1, "--batches", 1, "-o", record)
    assert done.exit_code == 0, done.output
    assert json.loads(record.read_text())["results"][0]["cost"] == pytest.approx(cost)


def test_the_bench_compares_macro_f1_with_exits_and_without(leaving: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(leaving, tmp_path / "bundle")
    write_calibration(bundle, responses=ResponseThresholds(0.6))
    set_bounds(bundle)
    rows = [row for row in make_rows(300) if row["split"] == "test"]
    files = [
        write_jsonl(tmp_path / f"{name}.jsonl", part)
        for name, part in (("one", rows[:20]), ("two", rows[20:]))
    ]
    record = tmp_path / "record.json"
    done = run(bench, "cascade", bundle, *files, "--rounds", 1, "-o", record)
    assert done.exit_code == 0, done.output
    for entry in json.loads(record.read_text())["results"]:
        for name, exits in (("macro_f1", True), ("whole_macro_f1", False)):
            texts = [(row["prompt"], row["response"]) for row in rows]
            found = load_guard(bundle, exits=exits).score_batch(texts)
            flagged = np.array([bool(one.is_harmful) for one in found])
            labels = np.array([row["label"] == 1 for row in rows])
            parts = {"one": slice(20), "two": slice(20, None)}
            expected = {k: macro_f1(labels[v], flagged[v]) for k, v in parts.items()}
            assert entry[name] == pytest.approx(expected)
            assert f" {np.mean([*expected.values()]):.4f} |" in done.stdout


def test_more_exits_than_every_choice_is_tried_of_are_refused(leaving: Path) -> None:
    bundle = load_bundle(leaving)
    assert bundle.manifest.cascade is not None
    many = msgspec.structs.replace(
        bundle.manifest.cascade, exits=[bundle.manifest.cascade.exits[0]] * 8
    )
    bundle = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, cascade=many))
    with pytest.raises(InputError, match="for 7 exits at most, found 8"):
        score_exits(bundle, [], Columns(), "validation", None, 1, silent)


def test_a_guard_with_spans_says_on_which_texts_its_exits_decide(
    leaving: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(leaving, tmp_path / "bundle")
    write_calibration(bundle, spans=[SpanThreshold(16, 0.9), SpanThreshold(32, 0.9)])
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(200))
    done = run(siren, "calibrate", bundle, data, "--cascade", "--loss", 40, "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "so exits decide on texts of at most 16 tokens" in done.stderr
    guard = Guard.load(bundle)
    texts = [row["prompt"] for row in make_rows(200)]
    found = guard.score_batch(texts)
    left = [one.tokens for one in found if one.exit]
    special = guard.manifest.text.max_length - guard.scorers[0].tokenizer.room
    assert left
    assert max(left) - special <= 16 < max(one.tokens for one in found) - special


def test_a_bundle_without_exits_says_how_to_get_some(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    result = run(siren, "calibrate", make_bundle(tmp_path / "bundle"), data, "--cascade")
    assert result.exit_code == 1
    assert "the bundle has no exits; make some with siren train --exits" in result.stderr
