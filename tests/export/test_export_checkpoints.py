"""What a checkpoint brings beside its weights is exported as the reference reads it, or refused."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from models import make_artifact
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import (
    LlmSiren,
    ReferenceUnavailable,
)
from siren_runtime.errors import BundleError, CheckpointError


def mistaken_tokenizer(tmp_path, backbone_folder):
    """A head and a backbone whose tokenizer transformers makes otherwise than tokenizer.json.

    As with Llama 2's: the class of that name puts no "▁" before a space that it finds there.
    """
    backbone = shutil.copytree(backbone_folder("mistral"), tmp_path / "backbone")
    settings = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"}
    for name, keys in (("config", {"model_type": "llama"}), ("tokenizer_config", settings)):
        path = backbone / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **keys}))
    return load_artifact(make_artifact(tmp_path / "head", backbone)), load_checkpoint(backbone)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_tokenizer_that_transformers_reads_otherwise_is_named(
    tmp_path, backbone_folder, precision
):
    inputs = mistaken_tokenizer(tmp_path, backbone_folder)
    reference = LlmSiren(*inputs).scores
    with pytest.raises(
        BundleError, match=r"tokenizer\.json tokenizes .* otherwise than LlamaTokenizer"
    ):
        export_bundle(*inputs, tmp_path / "bundle", precision=precision, reference=reference)
    assert not (tmp_path / "bundle").exists()
    manifest = export_bundle(
        *inputs, tmp_path / "bundle", precision=precision, reference=reference, allow_drift=True
    )
    assert manifest.verification.status == "drifted"
    assert "LlamaTokenizer" in manifest.verification.reason


_CODE = """
from transformers import Qwen3Config, Qwen3ForCausalLM

class Config(Qwen3Config):
    model_type = "qwen3"

class Model(Qwen3ForCausalLM):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.scaling *= SCALE
"""


@pytest.fixture
def with_code(tmp_path, backbone_folder, monkeypatch):
    """A head and a trusted backbone that names a class of its own, which scales attention."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.syspath_prepend(str(tmp_path / "hf"))

    def make(scale):
        backbone = shutil.copytree(backbone_folder("qwen3"), tmp_path / f"backbone{scale}")
        artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
        (backbone / "modeling_own.py").write_text(_CODE.replace("SCALE", str(scale)))
        config = json.loads((backbone / "config.json").read_bytes())
        config["auto_map"] = {
            "AutoConfig": "modeling_own.Config",
            "AutoModelForCausalLM": "modeling_own.Model",
        }
        (backbone / "config.json").write_text(json.dumps(config))
        return artifact, load_checkpoint(backbone, trust_remote_code=True)

    return make


def test_code_of_a_checkpoint_is_run_to_verify_and_decides(tmp_path, with_code):
    same = with_code(1)
    manifest = export_bundle(*same, tmp_path / "same", reference=LlmSiren(*same).scores)
    assert manifest.verification.status == "passed"
    other = with_code(2)
    with pytest.raises(BundleError, match="scores drift from llm-siren"):
        export_bundle(*other, tmp_path / "other", reference=LlmSiren(*other).scores)


def test_a_checkpoint_with_code_is_refused_where_nothing_verifies_it(tmp_path, with_code):
    inputs = with_code(1)

    def none(_progress):
        raise ReferenceUnavailable("llm-siren is not installed")

    for reference in (None, none):
        with pytest.raises(CheckpointError, match=r"auto_map .* could not be verified"):
            export_bundle(*inputs, tmp_path / "bundle", reference=reference)
    assert not (tmp_path / "bundle").exists()


def test_a_tied_embedding_may_be_stored_as_the_outputs_alone(tmp_path, backbone_folder):
    backbone = shutil.copytree(backbone_folder("qwen3"), tmp_path / "backbone")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    whole = export_bundle(artifact, load_checkpoint(backbone), tmp_path / "whole")
    tensors = load_file(backbone / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, backbone / "model.safetensors", metadata={"format": "pt"})
    checkpoint = load_checkpoint(backbone)
    reference = LlmSiren(artifact, checkpoint).scores
    alias = export_bundle(artifact, checkpoint, tmp_path / "alias", reference=reference)
    assert alias.verification.status == "passed"
    assert alias.files == whole.files

    config = json.loads((backbone / "config.json").read_bytes())
    (backbone / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"'embed_tokens\.weight' is missing"):
        export_bundle(artifact, load_checkpoint(backbone), tmp_path / "untied")


@pytest.mark.parametrize(
    ("base", "ours", "theirs"),
    [
        ("qwen3", "model.", "bert."),
        ("bert", "bert.", "model."),
        ("qwen3", "model.", "model.language_model."),
        ("qwen3", "model.", "language_model."),
    ],
)
def test_weights_under_the_names_of_another_family_are_refused(
    tmp_path, backbone_folder, base, ours, theirs
):
    backbone = shutil.copytree(backbone_folder(base), tmp_path / "backbone")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    tensors = load_file(backbone / "model.safetensors")
    tensors = {name.replace(ours, theirs, 1): values for name, values in tensors.items()}
    save_file(tensors, backbone / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"stored under '{theirs}'"):
        export_bundle(artifact, load_checkpoint(backbone), tmp_path / "bundle")


def test_a_tensor_that_two_shards_hold_is_refused(tmp_path, backbone_folder):
    """transformers takes the one of the later file, whatever the index says."""
    backbone = shutil.copytree(backbone_folder("qwen3"), tmp_path / "backbone")
    tensors = load_file(backbone / "model.safetensors")
    (backbone / "model.safetensors").unlink()
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    twice = "model.norm.weight"
    save_file(tensors, backbone / first)
    save_file({twice: -tensors[twice]}, backbone / second)
    weight_map = {**dict.fromkeys(tensors, first), twice: second}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (backbone / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=f"both {first} and {second} hold a tensor '{twice}'"):
        load_checkpoint(backbone)
