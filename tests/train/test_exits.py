"""Exits from labelled text to a guard that leaves early, as a person would make them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from labelled import make_rows, write_jsonl
from siren_bench.cli import app as bench
from siren_export.commands import export
from siren_export.heads.registry import load_artifact
from siren_runtime import Guard
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.commands.siren import app as siren
from siren_train.commands import calibrate, evaluate, extract, train
from tiny_bundle import make_bundle


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


def test_a_bundle_without_exits_says_how_to_get_some(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    result = run(siren, "calibrate", make_bundle(tmp_path / "bundle"), data, "--cascade")
    assert result.exit_code == 1
    assert "the bundle has no exits; make some with siren train --exits" in result.stderr
