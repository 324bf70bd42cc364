"""guard.json names the backbone that was read, and what the head names where that is another."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from models import make_artifact
from siren_command import siren
from siren_export.describe import names
from siren_export.sources import recipes
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.bundle import shipped
from siren_runtime.bundle.backbone import ModelName

COMMIT = "0123abc"


@pytest.fixture
def head(tmp_path, backbone_folder):
    """A head that names a hub repository."""
    folder = make_artifact(tmp_path / "engines" / "tiny", backbone_folder("qwen3"))
    config = json.loads((folder / "siren_config.json").read_text())
    config["base_model"] = {"model_id": "someone/qwen", "revision": "v1"}
    (folder / "siren_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("named", "revision", "source", "commit", "read", "other"),
    [
        ("org/a", None, "org/a", COMMIT, "org/a", False),
        ("org/a", COMMIT, "org/a", COMMIT, "org/a", False),
        ("org/a", None, "hf://org/a", COMMIT, "org/a", False),
        ("org/a", "v1", "org/a", COMMIT, "org/a", True),
        ("org/a", None, "org/b", COMMIT, "org/b", True),
        ("org/a", None, "/home/me/model", None, "model", True),
        ("org/a", None, "models/tiny.Q4_0.gguf", None, "tiny.Q4_0.gguf", True),
        ("/home/me/model", None, "/home/me/model", None, "model", False),
        ("org/a", None, ".", None, Path.cwd().name, True),
    ],
)
def test_what_was_read_is_named_without_its_path(named, revision, source, commit, read, other):
    artifact = SimpleNamespace(model_id=named, model_revision=revision)
    expected = ModelName(named, revision) if other else None
    assert names(artifact, source, commit) == (ModelName(read, commit), expected)


def test_a_backbone_that_was_given_is_the_one_that_is_told(head, tmp_path, backbone_folder):
    folder = backbone_folder("qwen3")
    result = siren("export", head, "--backbone", folder, "-o", tmp_path / "b", "--no-verify")
    assert result.exit_code == 0, result.stderr
    guard = Guard.load(tmp_path / "b")
    backbone = guard.manifest.backbone
    assert (backbone.id, backbone.revision) == (folder.name, None)
    assert backbone.digest == load_checkpoint(folder).digest()
    assert backbone.named == ModelName("someone/qwen", "v1")
    assert guard.base_model_id == "someone/qwen"
    shown = siren("inspect", tmp_path / "b").stdout
    assert folder.name in shown
    assert backbone.digest in shown.replace("\n", "").replace(" ", "")
    assert "someone/qwen at v1" in shown


def test_a_shipped_guard_keeps_the_name_of_its_model(head, tmp_path, backbone_folder, monkeypatch):
    recipe = {
        "backbone": {"requirement": "tiny==1.0", "parts": [{"package": "tiny", "path": "model"}]},
        "reference": "reference.json",
    }
    (head / "recipe.json").write_text(json.dumps(recipe))
    monkeypatch.setattr(shipped, "ENGINES", head.parent)
    monkeypatch.setattr(recipes.Recipe, "backbone", lambda _: backbone_folder("qwen3"))
    for place, given in (("own", []), ("other", ["--backbone", backbone_folder("qwen3")])):
        result = siren("export", "tiny", "-o", tmp_path / place, "--no-verify", *given)
        assert result.exit_code == 0, result.stderr
    own, other = (Guard.load(tmp_path / name).manifest.backbone for name in ("own", "other"))
    assert ModelName(own.id, own.revision) == other.named == ModelName("someone/qwen", "v1")
    assert own.named is None
    assert (other.id, other.revision) == (backbone_folder("qwen3").name, None)
