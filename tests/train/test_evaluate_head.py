"""siren evaluate --head measures another head than the first, and its classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calibrated import write_calibration
from guards import load_guard
from labelled import make_rows, write_jsonl
from models import make_artifact
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.thresholds import SpanThreshold
from siren_train.measure.decisions import with_spans, write_decided

NAMES = ["safe", "harmful", "odd"]


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Path:
    """A guard of two heads, the second of which tells three classes apart."""
    folder, backbone = tmp_path_factory.mktemp("heads"), backbone_folder("bert")
    harm = make_artifact(folder / "harm", backbone, layers=[0, 2])
    kinds = make_artifact(folder / "kinds", backbone, layers=[0, 2], classes=3, seed=1)
    config = json.loads((kinds / "siren_config.json").read_text())
    config["mlp"]["class_names"] = NAMES
    (kinds / "siren_config.json").write_text(json.dumps(config))
    heads = together({"harm": load_artifact(harm), "kinds": load_artifact(kinds)})
    export_bundle(heads, load_checkpoint(backbone), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(90, classes=3)
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", rows)


def test_a_further_head_is_measured_by_the_label_column(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    arguments = "evaluate", bundle, data, "--head", "kinds", "-o", tmp_path, "--threads", 1
    done = siren(*arguments)
    assert done.exit_code == 0, done.output
    assert "; head kinds; threshold 0.5; **mean macro-F1" in done.stdout
    report = json.loads((tmp_path / "evaluation.json").read_text())
    rows = [row for row in map(json.loads, data.read_text().splitlines()) if row["split"] == "test"]
    labels = np.array([row["label"] for row in rows])
    results = load_guard(bundle).score_batch([(row["prompt"], row["response"]) for row in rows])
    found = [result.heads["kinds"] for result in results]
    flagged = np.array([one.is_harmful for one in found])
    assert (flagged != np.array([result.is_harmful for result in results])).any()
    metrics = report["by_dataset"]["data"]
    assert metrics["recall"] == pytest.approx(flagged[labels == 1].mean())
    (kinds,) = report["heads"]
    assert (report["head"], kinds["head"], [*kinds["by_category"]]) == ("kinds", "kinds", NAMES)
    likeliest = np.array([[*one.categories.values()] for one in found]).argmax(axis=1)
    for place, name in enumerate(NAMES):
        expected = (likeliest == place)[labels == place].mean()
        assert kinds["by_category"][name]["recall"] == pytest.approx(expected)


def test_spans_flag_rows_of_the_heads_that_decide_by_them_alone(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    """The second head has thresholds of spans, and the first, which spans would reach, has none."""
    guard = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    rows = [row for row in map(json.loads, data.read_text().splitlines()) if row["split"] == "test"]
    texts = [(row["prompt"], row["response"]) for row in rows]
    asked = Guard.load(guard).score_batch(texts, long_text="truncate", spans=[8])
    by_span = max(asked, key=lambda result: result.risk - result.score)
    manifest = write_calibration(guard, threshold=(by_span.score + by_span.risk) / 2)
    decision = with_spans(manifest.decision("kinds"), [SpanThreshold(8, 0.01)], None)
    write_decided(guard, manifest, "kinds", decision)
    results = Guard.load(guard).score_batch(texts, long_text="truncate")
    assert not results[asked.index(by_span)].is_harmful  # it would be, by its span
    for head, sizes, classes in (("harm", [], 2), ("kinds", [8], 3)):
        labelled = [{**row, "label": row["label"] % classes} for row in rows]
        source, output = write_jsonl(tmp_path / f"{head}.jsonl", labelled), tmp_path / head
        done = siren("evaluate", guard, source, "--spans", "--head", head, "-o", output)
        assert done.exit_code == 0, done.output
        assert (", with spans of 8 tokens." if sizes else ", without spans.") in done.stdout
        report = json.loads((output / "evaluation.json").read_text())
        assert report["spans"] == sizes
        right = [
            result.heads[head].is_harmful == (row["label"] == 1)
            for result, row in zip(results, labelled, strict=True)
        ]
        assert report["by_dataset"][head]["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_streams_say_which_head_decides_by_spans(bundle: Path, tmp_path: Path) -> None:
    guard = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = load_bundle(guard).manifest
    decision = with_spans(manifest.decision("kinds"), [SpanThreshold(8, 0.9)], None)
    write_decided(guard, manifest, "kinds", decision)
    data = write_jsonl(tmp_path / "rows.jsonl", [{"response": "one two three", "split": "test"}])
    done = siren("evaluate", guard, data, "--streaming", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "streaming.json").read_text())
    assert report["spans"] == []
    assert {name: head["spans"] for name, head in report["heads"].items()} == {
        "harm": [],
        "kinds": [8],
    }
    assert "tokens count too." not in done.stdout
    assert "| harm | rows | 0.5000 | - | 1 |" in done.stdout
    assert "| kinds | rows | 0.5000 | 8 | 1 |" in done.stdout


def test_without_the_option_the_first_head_is_measured(bundle: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(60))
    done = siren("evaluate", bundle, data, "-o", tmp_path, "--threads", 1)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert (report["head"], report["heads"]) == (None, [])


@pytest.mark.parametrize(
    ("options", "status", "match"),
    [
        (["--head", "other"], 1, "has no head 'other'; it has harm, kinds"),
        (["--head", "kinds", "--threshold", "0.6"], 2, "at its own thresholds"),
        (["--head", "kinds", "--streaming"], 2, "--streaming measures every head"),
        (["--head", "kinds", "--disguised"], 2, "texts as they are"),
    ],
)
def test_what_a_further_head_is_not_measured_by_is_refused(
    bundle: Path, data: Path, options: list[str], status: int, match: str
) -> None:
    done = siren("evaluate", bundle, data, *options)
    assert done.exit_code == status
    assert match in " ".join(done.stderr.replace("│", " ").split())
