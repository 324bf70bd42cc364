"""What a benchmark runs on is all of a guard: its heads, its decision, its spans."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from models import make_artifact
from siren_bench.cli import app
from siren_bench.commands.workbench import open_workbench
from siren_bench.subjects.texts import texts_of
from siren_export.heads.decision_file import write_decision
from siren_runtime import Guard, InputError
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.thresholds import ResponseThresholds, SpanThreshold, Tier

DECISION = Decision(
    0.4,
    tiers=[Tier("block", 0.9)],
    spans=[SpanThreshold(32, 0.8)],
    responses=ResponseThresholds(0.6, [Tier("block", 0.95)]),
)


@pytest.fixture
def shipped(tmp_path, backbone_folder, monkeypatch):
    """A guard with a second head and thresholds of its own, known by its name."""
    backbone = backbone_folder("bert")
    head = make_artifact(tmp_path / "tiny-shipped", backbone)
    kinds = make_artifact(head / "kinds", backbone, classes=3, seed=1)
    write_decision(head, DECISION)
    recipe = SimpleNamespace(
        artifact=head, further={"kinds": str(kinds)}, backbone=lambda: backbone
    )
    monkeypatch.setattr(
        "siren_bench.subjects.subject.find_recipe",
        lambda name: recipe if name == "tiny-shipped" else None,
    )
    return head


def _manifest(tmp_path):
    with open_workbench("tiny-shipped", keep=tmp_path / "kept") as bench:
        return load_bundle(bench.bundle("fp32")).manifest, bench


def test_a_shipped_guard_is_measured_with_all_its_heads_and_as_it_decides(tmp_path, shipped):
    manifest, bench = _manifest(tmp_path)
    assert [*manifest.heads] == ["harm", "kinds"]
    assert manifest.decision("harm") == DECISION
    assert bench.described["weights_sha256"] == manifest.weights_sha256
    peers_head = json.loads((bench.subject.head / "siren_config.json").read_text())
    assert peers_head["base_model"]["model_id"] == str(bench.subject.backbone.resolve())
    heads = [bench.artifact.head, bench.artifact.further["kinds"].head]
    assert bench.size.head_parameters == sum(head.parameters for head in heads)


def test_what_was_kept_of_another_decision_is_made_anew(tmp_path, shipped):
    _manifest(tmp_path)
    write_decision(shipped, Decision(0.7))
    assert _manifest(tmp_path)[0].decision("harm") == Decision(0.7)
    (shipped / "decision.json").unlink()
    assert _manifest(tmp_path)[0].threshold == 0.5


def test_latency_times_the_guard_as_it_is_shipped_where_it_is_asked_to(tmp_path, shipped):
    output = tmp_path / "latency.json"
    words = ["latency", "tiny-shipped", "--engines", "fp32,fp32+spans", "--peers", ""]
    options = ["--tokens", "40", "--rounds", "2", "--threads", "1", "--no-roofline"]
    kept = ["--keep", str(tmp_path / "kept"), "-o", str(output)]
    result = CliRunner().invoke(app, [*words, *options, *kept])
    assert result.exit_code == 0, result.output
    plain, spanned = json.loads(output.read_text())["results"]
    names = ["siren-edge fp32", "siren-edge fp32 with spans"]
    assert [plain["engine"], spanned["engine"]] == names
    assert plain["score"] == pytest.approx(spanned["score"], abs=1e-6)


def test_an_engine_with_spans_scores_them_as_a_guard_does_that_is_loaded_by_default(
    tmp_path, shipped
):
    with open_workbench("tiny-shipped", keep=tmp_path / "kept") as bench:
        text = texts_of(bench.checkpoint.tokenizer_json, [40])[40]
        (plain, spanned), _ = bench.engines(["fp32", "fp32+spans"], [], 1)
    assert plain.model_key != spanned.model_key
    assert plain.load().score(text).spans == ()
    assert spanned.load().score(text).spans == Guard.load(plain.bundle).score(text).spans != ()


def test_spans_are_refused_of_a_guard_that_has_no_thresholds_of_them(tmp_path, backbone_folder):
    head = make_artifact(tmp_path / "head", backbone_folder("bert"))
    with open_workbench(str(head)) as bench, pytest.raises(InputError, match="give int8"):
        bench.engines(["int8+spans"], [], 1)
