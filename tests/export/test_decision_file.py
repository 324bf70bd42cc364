"""decision.json beside a head: exports decide by it, and one that is not the head's is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import make_artifact
from siren_export.export import export_bundle
from siren_export.heads.decision_file import write_decision
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import LlmSiren
from siren_runtime import Guard
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.progress import silent
from siren_runtime.bundle.thresholds import SpanThreshold, Tier
from siren_runtime.errors import ArtifactError, InputError
from siren_runtime.text.reading import AS_LLM_SIREN
from texts import TEXTS
from valid_artifact import CONFIG, TENSORS, write

DECISION = Decision(
    threshold=0.4,
    tiers=[Tier("block", 0.9), Tier("review", 0.3)],
    spans=[SpanThreshold(32, 0.95), SpanThreshold(64, 0.85)],
)


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return write(tmp_path / "head", CONFIG, TENSORS)


def test_an_export_decides_by_it(backbone_folder: Callable[[str], Path], tmp_path: Path) -> None:
    backbone = backbone_folder("bert")
    folder = make_artifact(tmp_path / "head", backbone)
    before = load_artifact(folder)
    assert write_decision(folder, DECISION).name == "decision.json"
    artifact = load_artifact(folder)
    assert (artifact.decision, artifact.model_id) == (DECISION, before.model_id)
    bundle = tmp_path / "bundle"
    manifest = export_bundle(artifact, load_checkpoint(str(backbone)), bundle)
    assert manifest.decision("harm") == DECISION
    with Guard.load(bundle, backend="cpu") as guard:
        every = guard.score_batch(TEXTS)
    results = [result for result in every if not result.spans]  # spans decide of the others
    for found in results:
        assert found.is_harmful == (found.score >= 0.4)
        tiers = [tier.name for tier in DECISION.tiers if found.score >= tier.threshold]
        assert found.tier == (tiers[0] if tiers else None)
    assert {found.tier for found in results} >= {"review", None}


def test_a_temperature_beside_a_head_is_not_held_against_it(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """llm-siren scores without it, and the export compares with llm-siren."""
    backbone = backbone_folder("bert")
    folder = make_artifact(tmp_path / "head", backbone)
    write_decision(folder, Decision(threshold=0.5, temperature=3.0))
    artifact, checkpoint = load_artifact(folder), load_checkpoint(str(backbone))
    bundle = tmp_path / "bundle"
    reference = LlmSiren(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, bundle, reference=reference)
    assert (manifest.verification.status, manifest.temperature) == ("passed", 3.0)
    text, expected = reference(silent).scored[0]
    with Guard.load(bundle, backend="cpu", **AS_LLM_SIREN) as guard:
        odds = math.log(expected / (1 - expected)) / 3.0
        assert guard.score(text).score == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)


def test_other_weights_take_it_away_or_are_refused(head: Path) -> None:
    write_decision(head, DECISION)
    changed = {**TENSORS, "network.0.bias": TENSORS["network.0.bias"] + 1}
    write(head, CONFIG, changed)  # behind the back of what writes heads
    with pytest.raises(ArtifactError, match=r"decision\.json: is of other weights than siren"):
        load_artifact(head)


def test_a_head_that_is_written_anew_has_none(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = make_artifact(tmp_path / "head", backbone_folder("bert"))
    write_decision(folder, DECISION)
    make_artifact(folder, backbone_folder("bert"))
    assert load_artifact(folder).decision.tiers == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["decision"].update(threshold=1.5), "threshold"),
        (lambda d: d["decision"].update(threshold=None), "threshold"),
        (lambda d: d["decision"].pop("threshold"), "threshold"),
        (lambda d: d["decision"]["tiers"].reverse(), "tiers"),
        (lambda d: d["decision"]["spans"].reverse(), "spans"),
        (lambda d: d["decision"].update(labels=[{"name": "hate", "threshold": 0.5}]), "labels"),
        (lambda d: d["decision"].update(temperature=0), "temperature"),
        (lambda d: d["decision"].update(tresholds=[]), "tresholds"),
        (lambda d: d.update(weights_sha256="00"), "other weights"),
        (lambda d: d.pop("weights_sha256"), "weights_sha256"),
        (lambda d: d.clear(), "weights_sha256"),
    ],
)
def test_a_bad_one_is_named(
    head: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write_decision(head, DECISION)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=rf"decision\.json.*{message}"):
        load_artifact(head)


def test_a_folder_without_a_head_gets_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no siren\.safetensors"):
        write_decision(tmp_path, DECISION)
