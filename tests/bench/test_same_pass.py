"""The bench of a generator that guards itself times every subject in every round."""

import json
from pathlib import Path

import pytest

from backbones import BackboneSpec
from generators import make_generator, need_genai
from models import make_artifact, make_backbone
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.graft.graft import graft
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint

need_genai()


@pytest.mark.parametrize("beside", [False, True])
def test_every_subject_is_compared_with_the_plain_one_of_its_round(
    beside: bool, tmp_path: Path
) -> None:
    backbone = make_backbone(tmp_path / "backbone", BackboneSpec("llama"))
    plain = make_generator(backbone, tmp_path / "plain", "fp32", "cpu")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    graft(plain, artifact, tmp_path / "grafted", foreign=True, verify=False)
    options = ["--tokens", 4, "--rounds", 2, "--threads", 1, "--prompt", "Tell me of bread"]
    if beside:
        export_bundle(artifact, load_checkpoint(str(backbone)), tmp_path / "bundle")
        options += ["--bundle", tmp_path / "bundle"]
    record = tmp_path / "record.json"
    folders = (plain, tmp_path / "grafted")
    result = siren("bench", "same-pass", *folders, *options, "-o", record)
    assert result.exit_code == 0, result.output
    results = json.loads(record.read_text())["results"]
    assert len(results) == (5 if beside else 4)
    assert all(len(one["seconds_per_token"]) == 2 for one in results)
    assert results[0]["to_plain"] == [1.0, 1.0]
    assert ("guard's stream" in result.stdout) == beside
