"""siren calibrate of one of a bundle's heads: which spans count, and where it is kept."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from labelled import make_rows, write_jsonl
from models import make_artifact
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.bundle.reader import load_bundle


@pytest.fixture
def bundle(tmp_path: Path, backbone_folder: Callable[[str], Path]) -> Path:
    """A bundle of two heads that are alike but for their weights, and lie beside it."""
    backbone = backbone_folder("qwen3")
    heads = {
        name: load_artifact(make_artifact(tmp_path / name, backbone, layers=[1], seed=seed))
        for seed, name in enumerate(("first", "second"))
    }
    export_bundle(together(heads), load_checkpoint(backbone), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_spans_of_a_head_count_where_another_alone_has_thresholds_of_them(
    bundle: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(40))
    assert siren("calibrate", bundle, "--spans", "0.9").exit_code == 0
    rule = "--spans", "fpr:0.2", "--diluted", "36", "--threads", 1
    done = siren("calibrate", bundle, data, "--head", "second", *rule)
    assert done.exit_code == 0, done.output
    assert "longer than 32 tokens" not in done.stderr
    manifest = json.loads((bundle / "guard.json").read_text())
    assert {span["threshold"] for span in manifest["spans"]} == {0.9}
    shortest = manifest["decisions"]["second"]["spans"][0]
    assert shortest["tokens"] == 32
    assert shortest["threshold"] < 1


def test_what_was_chosen_is_kept_beside_the_very_head_alone(bundle: Path, tmp_path: Path) -> None:
    arguments = "calibrate", bundle, "--head", "second", "--threshold", "0.7", "--record"
    result = siren(*arguments, tmp_path / "first")
    assert result.exit_code == 1
    assert "siren.safetensors is not the one that 'second' of the bundle was exp" in result.stderr
    assert not (tmp_path / "first" / "decision.json").exists()
    assert load_bundle(bundle).manifest.decision("second").threshold == 0.5
    result = siren(*arguments, tmp_path / "second")
    assert result.exit_code == 0, result.output
    assert "taken for it" not in result.stderr
    assert load_artifact(tmp_path / "second").decision.threshold == 0.7


def test_a_bundle_of_before_takes_a_head_that_is_like_its_own_and_says_so(
    bundle: Path, tmp_path: Path
) -> None:
    manifest = json.loads((bundle / "guard.json").read_text())
    assert set(manifest.pop("weights_sha256")) == {"first", "second"}
    (bundle / "guard.json").write_text(json.dumps(manifest))
    result = siren("calibrate", bundle, "--threshold", "0.7", "--record", tmp_path / "first")
    assert result.exit_code == 0, result.output
    assert "is like 'first', and taken for it" in result.stderr
    assert load_artifact(tmp_path / "first").decision.threshold == 0.7
