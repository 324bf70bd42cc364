"""Where nothing compared an export's tokens with transformers', its report says so."""

import json
import sys
from pathlib import Path

import pytest

from backbones import BackboneSpec
from models import make_artifact, make_backbone
from onnx_backbones import export_onnx
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.own_states import OwnStates
from siren_export.verify.reference import Reference
from siren_export.verify.unavailable import ReferenceUnavailable
from siren_runtime import BundleError
from siren_runtime.bundle.progress import Progress
from tiny_tokenizers import TOKENIZERS

UNSAID = "transformers is not installed"


def no_reference(_: Progress) -> Reference:
    raise ReferenceUnavailable("llm-siren is not installed")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer's class takes the vocabulary of tokenizer.json, and makes the rest itself."""
    spec = BackboneSpec("llama", {"num_hidden_layers": 2})
    folder = make_backbone(tmp_path_factory.mktemp("backbone"), spec)
    TOKENIZERS["mistral"](folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizer"}))
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_tokens_that_transformers_reads_otherwise_are_refused_or_said_to_be_uncompared(
    kind: str, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    source = backbone if kind == "safetensors" else export_onnx(backbone, tmp_path / "onnx")
    checkpoint = load_checkpoint(str(source))
    own = no_reference if kind == "safetensors" else OwnStates(artifact, checkpoint).scores
    with pytest.raises(BundleError, match="otherwise than LlamaTokenizer"):
        export_bundle(artifact, checkpoint, tmp_path / "bundle", stream=False, reference=own)
    monkeypatch.setitem(sys.modules, "transformers", None)
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", stream=False, reference=own)
    report = manifest.verification
    if kind == "safetensors":
        assert report.status == "unverified"
        told = f"llm-siren is not installed; its tokens were compared with none either: {UNSAID}"
        assert report.reason == told
    else:
        assert report.status == "passed"
        assert report.reference is not None
        assert report.reference.endswith(f", whose tokens were compared with none: {UNSAID}")
