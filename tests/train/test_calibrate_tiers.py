"""Tiers are reached by spans too, so they are chosen by them."""

import json
from pathlib import Path

import numpy as np
import pytest

from calibrated import write_calibration
from labelled import make_rows, write_jsonl
from siren_command import siren
from siren_runtime import Guard
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.manifest import MANIFEST_FILE, decode
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import parse_source
from siren_train.measure.calibrate_responses import risks
from siren_train.measure.evaluate import score_rows
from tiny_bundle import edit_manifest, make_bundle

SIZES = (8, 16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", make_rows(900))


def calibrated(folder: Path, *, responses: bool) -> Path:
    """A bundle with thresholds of spans that a part of the rows reaches."""
    bundle = make_bundle(folder)
    spans = [SpanThreshold(size, 0.9 - place / 6) for place, size in enumerate(SIZES)]
    stricter = [SpanThreshold(one.tokens, one.threshold + 0.01) for one in spans]
    write_calibration(bundle, threshold=0.45, spans=spans)
    if responses:
        write_calibration(bundle, responses=ResponseThresholds(0.55, spans=stricter))
    return bundle


@pytest.mark.parametrize("responses", [False, True])
def test_risks_are_those_that_a_guard_with_spans_gives(
    responses: bool, data: Path, tmp_path: Path
) -> None:
    bundle = calibrated(tmp_path / "bundle", responses=responses)
    sources = [parse_source(str(data))]
    decision = decode((bundle / MANIFEST_FILE).read_bytes(), "test").decision("harm")
    with Guard.load(bundle, **{**AS_LLM_SIREN, "spans": None}) as guard:
        rows = [row for row in read_rows(sources[0], Columns()) if row.split == "validation"]
        expected = [result.risk for result in guard.score_batch([row.given for row in rows])]
        scores = score_rows(guard, sources, Columns(), "validation", spans=SIZES)
    found = risks(scores, decision).scores
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found > scores.scores).any()
    assert len(np.unique(found)) > 20


def test_scores_without_spans_are_the_risks(data: Path, tmp_path: Path) -> None:
    bundle = calibrated(tmp_path / "bundle", responses=False)
    with Guard.load(bundle, **AS_LLM_SIREN) as guard:
        scores = score_rows(guard, [parse_source(str(data))], Columns(), "validation")
    assert risks(scores, Decision(0.5)) is scores


def test_a_tier_is_reached_by_no_more_safe_rows_than_its_rule_says(
    data: Path, tmp_path: Path
) -> None:
    bundle = calibrated(tmp_path / "bundle", responses=False)
    shown = siren("calibrate", bundle, data, "--tier", "block=fpr:0.1")
    assert shown.exit_code == 0, shown.stderr
    rows = list(read_rows(parse_source(str(data)), Columns()))
    safe = [row.given for row in rows if row.split == "validation" and row.label == 0]
    with Guard.load(bundle) as guard:
        tiers = [result.tier for result in guard.score_batch(safe)]
        by_text = [result.tier for result in guard.score_batch(safe, spans=False)]
    share = sum(tier == "block" for tier in tiers) / len(safe)
    assert 0.05 < share <= 0.1
    assert by_text.count("block") < tiers.count("block")
    (tier,) = json.loads((bundle / MANIFEST_FILE).read_text())["tiers"]
    assert f"block: from {tier['threshold']:.4f}" in shown.stdout


def test_tiers_go_by_the_spans_that_are_chosen_with_them(data: Path, tmp_path: Path) -> None:
    bundle, bare = (make_bundle(tmp_path / name) for name in ("bundle", "bare"))
    for folder in (bundle, bare):  # as it is, it reads no 32 tokens beside the special ones
        edit_manifest(folder, lambda manifest: manifest["text"].update(max_length=128))
    options = "--spans", "fpr:0.2", "--diluted", "40", "--tier", "block=fpr:0.1"
    shown = siren("calibrate", bundle, data, *options)
    assert shown.exit_code == 0, shown.stderr
    at_once = json.loads((bundle / MANIFEST_FILE).read_text())
    shown = siren("calibrate", bundle, data, "--tier", "block=fpr:0.1")
    assert shown.exit_code == 0, shown.stderr
    after = json.loads((bundle / MANIFEST_FILE).read_text())
    assert (after["spans"], after["tiers"]) == (at_once["spans"], at_once["tiers"])
    siren("calibrate", bare, data, "--tier", "block=fpr:0.1")
    assert json.loads((bare / MANIFEST_FILE).read_text())["tiers"] != after["tiers"]


def test_kept_and_written_tiers_are_shown_as_chosen_ones_are(data: Path, tmp_path: Path) -> None:
    bundle = calibrated(tmp_path / "bundle", responses=False)
    chosen = siren("calibrate", bundle, data, "--tier", "block=fpr:0.1")
    (tier,) = json.loads((bundle / MANIFEST_FILE).read_text())["tiers"]
    file = tmp_path / "tiers.json"
    file.write_text(json.dumps({"block": tier["threshold"]}))
    line = next(line for line in chosen.stdout.splitlines() if line.startswith("block: "))
    for options in (("--threshold", "0.45"), ("--tiers", file)):
        shown = siren("calibrate", bundle, data, *options)
        assert shown.exit_code == 0, shown.stderr
        assert line in shown.stdout.splitlines()


def test_a_file_of_tiers_is_read_before_any_row(data: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    options = "--tiers", tmp_path / "tires.json", "--split", "none"
    refused = siren("calibrate", bundle, data, *options)
    assert refused.exit_code == 1
    assert "tires.json: no such file" in refused.stderr
