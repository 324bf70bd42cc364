"""An evaluation of a guard whose first head has labels measures what that guard says of rows."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from guards import load_guard
from labelled import COMMON, WORDS, Rows, make_rows, write_jsonl
from models import LABELS, make_labels
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.bundle.heads import Decision, LabelDecision
from siren_runtime.bundle.reader import load_bundle
from siren_train.measure.decisions import write_decided
from siren_train.measure.metrics import calibration_error
from tiny_bundle import make_bundle

OWN = (0.62, 0.35, 0.48)  # from which probability each label holds


def labelled_rows(count: int) -> Rows:
    """Rows that name their labels, of which every eleventh harmful one does not."""
    rng, rows = random.Random(0), list[dict[str, Any]]()
    for index in range(count):
        held = [label for label in LABELS if rng.random() < 0.4]
        words = rng.choices(COMMON, k=3)
        for label in held:
            words += rng.choices(WORDS[LABELS.index(label)], k=5)
        unsaid = bool(held) and index % 11 == 5
        rows.append(
            {
                "text": " ".join(words),
                "label": int(bool(held)),
                "category": "of some kind" if unsaid else "+".join(held),
                "split": ("validation", "test")[index % 2],
            }
        )
    return rows


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Path:
    """A guard of one head, whose labels hold from other probabilities than one half."""
    folder, backbone = tmp_path_factory.mktemp("labels"), backbone_folder("bert")
    head = load_artifact(make_labels(folder / "head", backbone, layers=[0, 2]))
    export_bundle(head, load_checkpoint(backbone), folder / "bundle")
    manifest = load_bundle(folder / "bundle").manifest
    labels = [LabelDecision(name, own) for name, own in zip(LABELS, OWN, strict=True)]
    write_decided(folder / "bundle", manifest, manifest.primary, Decision(0.5, labels=labels))
    return folder / "bundle"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", labelled_rows(120))


def read(data: Path) -> tuple[list[str], np.ndarray]:
    """The texts of the test rows, and which of them are harmful."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    test = [row for row in rows if row["split"] == "test"]
    return [row["text"] for row in test], np.array([row["label"] == 1 for row in test])


def evaluated(*arguments: object, report: str, output: Path) -> tuple[str, Any]:
    """The Markdown of an evaluation, and its JSON."""
    done = siren("evaluate", *arguments, "-o", output, "--threads", 1)
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads((output / f"{report}.json").read_text())


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_rows_are_flagged_as_the_guard_flags_them(
    bundle: Path, data: Path, tmp_path: Path, threshold: float | None
) -> None:
    given = () if threshold is None else ("--threshold", threshold)
    told, report = evaluated(bundle, data, *given, report="evaluation", output=tmp_path)
    texts, harmful = read(data)
    results = load_guard(bundle).score_batch(texts, threshold)
    flagged, risks, scores = (
        np.array([getattr(result, name) for result in results])
        for name in ("is_harmful", "risk", "score")
    )
    assert (flagged != (scores >= 0.5)).any()
    metrics = report["by_dataset"]["data"]
    assert metrics["recall"] == pytest.approx(flagged[harmful].mean())
    assert metrics["precision"] == pytest.approx(harmful[flagged].mean())
    assert metrics["auroc"] == pytest.approx(roc_auc_score(harmful, risks))
    assert metrics["expected_calibration_error"] == calibration_error(harmful, scores)
    assert f"threshold {'each label' if threshold is None else threshold}" in told
    (head,) = report["heads"]
    for name, own in head["thresholds"].items():
        found = [name in result.flagged for result in results]
        assert found == [result.categories[name] >= own for result in results]


def test_disguised_and_diluted_rows_are_flagged_so_too(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    texts, harmful = read(data)
    guard = load_guard(bundle)

    def shares(**reading: Any) -> tuple[float, float]:
        found = guard.score_batch(texts, **reading)
        flagged = np.array([result.is_harmful for result in found])
        return pytest.approx(flagged[harmful].mean()), pytest.approx(flagged[~harmful].mean())

    told, report = evaluated(bundle, data, "--disguised", report="disguised", output=tmp_path)
    assert "threshold each label's" in told
    metrics = report["results"]["data"]["as written"]
    assert metrics["recall"] == shares()[0]
    lengths = "--diluted", "8"
    told, report = evaluated(bundle, data, *lengths, report="diluted", output=tmp_path)
    assert "threshold each label's" in told
    alone = {found["way"]: found for found in report["results"] if found["place"] == "alone"}
    for way, reading in (
        ("beginning", {"long_text": "truncate"}),
        ("windows", {"long_text": "windows"}),
        ("spans", {"long_text": "windows", "spans": True}),
    ):
        assert (alone[way]["recall"], alone[way]["false_alarms"]) == shares(**reading)


@pytest.mark.filterwarnings("ignore:.*re-encodes")
def test_streams_raise_the_alarm_as_the_guard_does(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    texts, harmful = read(data)
    lines = [
        {"response": text, "label": int(label), "split": "test"}
        for text, label in zip(texts, harmful, strict=True)
    ]
    streams = write_jsonl(tmp_path / "streams.jsonl", lines)
    options = "--streaming", "--words", 1000  # whole texts
    told, report = evaluated(bundle, streams, *options, report="streaming", output=tmp_path)
    assert "threshold each label's" in told
    results = load_guard(bundle).score_batch([(None, text) for text in texts])
    flagged = np.array([result.is_harmful for result in results])
    metrics = report["by_dataset"]["streams"]
    assert 1 - metrics["missed"] == pytest.approx(flagged[harmful].mean())
    assert metrics["false_alarms"] == pytest.approx(flagged[~harmful].mean())


def test_it_is_said_where_rows_name_no_label_and_how_many_are_left_out(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    unsaid = [row for row in rows if row["category"] == "of some kind"]
    left_out = sum(row["split"] == "test" for row in unsaid)
    assert left_out
    done = siren("evaluate", bundle, data, "--threads", 1)
    assert f"{left_out} of 60 rows say nothing of a label of the head 'harm'" in done.stderr
    own = shutil.copytree(bundle, tmp_path / "bundle")
    done = siren("calibrate", own, data, "--threshold", "best", "--split", "test")
    assert done.exit_code == 0, done.output
    assert f"{left_out} of 60 rows say nothing" in done.stderr
    other = write_jsonl(tmp_path / "other.jsonl", make_rows(40))
    done = siren("evaluate", bundle, data, other, "--threads", 1)
    assert "other: no row names a label of the head 'harm' (hate, violence" in done.stderr
    done = siren("evaluate", bundle, other, "--threads", 1)
    assert "no row names a label of the head 'harm'" in done.stderr
    assert "so they are not measured" in done.stderr


def test_labels_that_no_head_has_are_refused(bundle: Path, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text('{"hate": ["h*"], "violent": ["v*"]}')
    plain = make_bundle(tmp_path / "plain")
    for command in (("evaluate",), ("calibrate", "--threshold", "best")):
        name, *options = command
        for labels, unknown in (("hate,nonsense,other", "nonsense, other"), (table, "violent")):
            done = siren(name, bundle, data, *options, "--labels", labels)
            assert done.exit_code == 2
            message = " ".join(done.stderr.replace("│", " ").split())
            assert f"--labels names {unknown}; the guard has the labels hate" in message
        assert siren(name, plain, data, *options, "--labels", "hate").exit_code == 2
    table.write_text('{"hate": ["h*"], "violence": ["v*"]}')
    assert siren("evaluate", bundle, data, "--labels", table).exit_code == 0
