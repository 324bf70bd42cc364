"""What transformers loads and llm-siren does not is verified too, as are its int8 exports."""

import json
import shutil
import socket
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from backbones import BACKBONES, MULTIMODAL, BackboneSpec
from models import make_artifact, make_backbone, make_labels
from siren_export import export as export_module
from siren_export.export import export_bundle
from siren_export.families.registry import backbone_of
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import LlmSiren, ReferenceUnavailable
from siren_runtime.bundle.progress import silent
from siren_runtime.errors import BundleError
from trajectories import CHATML, make_chat_backbone, make_trajectory_head

# A constant of each family's graph, a little wrong.
WRONG = {
    "modernbert": {"neighbours": 5},
    "deberta": {"furthest": 256},
    "mistral3": {"windows": dict.fromkeys(range(4), 8)},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def copied(tmp_path, backbone_folder):
    """A function: a backbone's name -> a head of it, and a copy of its folder."""

    def make(name, **options):
        folder = shutil.copytree(backbone_folder(name), tmp_path / "backbone")
        return load_artifact(make_artifact(tmp_path / "head", folder, **options)), folder

    return make


def exported(artifact, checkpoint, bundle, precision=None):
    """The report of an export that is held against llm-siren's head over transformers' states."""
    return export_bundle(
        artifact,
        checkpoint,
        bundle,
        precision=precision,
        stream=False,
        reference=LlmSiren(artifact, checkpoint).scores,
    ).verification


@pytest.mark.parametrize("name", WRONG)
def test_a_graph_is_compared_with_the_states_that_transformers_gives(
    tmp_path, backbone_folder, monkeypatch, name
):
    backbone = backbone_folder(name)
    folders = {
        "harm": make_artifact(tmp_path / "harm", backbone),  # the last block and its norm too
        "kinds": make_labels(tmp_path / "kinds", backbone, layers=[1]),
    }
    artifact = together({head: load_artifact(folder) for head, folder in folders.items()})
    checkpoint = load_checkpoint(backbone)
    found = LlmSiren(artifact, checkpoint).scores(silent)
    given = {"stream": False, "reference": lambda _: found}

    report = export_bundle(artifact, checkpoint, tmp_path / "right", **given).verification
    assert report.status == "passed"
    assert report.reference.startswith("transformers 5.")
    assert "head in float32" in report.reference
    assert max(report.max_difference, report.further["kinds"].max_difference) <= 1e-4

    wrong = replace(backbone_of(checkpoint), **WRONG[name])
    monkeypatch.setattr(export_module, "backbone_of", lambda _: wrong)
    with pytest.raises(BundleError, match="drift from transformers"):
        export_bundle(artifact, checkpoint, tmp_path / "wrong", **given)


@pytest.mark.parametrize("name", WRONG)
def test_an_int8_export_of_what_llm_siren_does_not_load_is_held_to_its_bound(
    tmp_path, backbone_folder, name
):
    backbone = backbone_folder(name)
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone, pooling="mlp_mean"))
    report = exported(artifact, load_checkpoint(backbone), tmp_path / "bundle", "int8")
    assert (report.status, report.bounded, report.bound) == ("passed", "mean", 2e-2)
    assert "MLP outputs" in report.reference


@pytest.mark.parametrize("name", ["roberta", "gemma3-multimodal", "llava-next-granite"])
def test_mlps_that_are_not_where_llm_siren_looks_are_compared_too(tmp_path, backbone_folder, name):
    backbone = backbone_folder(name)
    head = make_artifact(tmp_path / "head", backbone, layers=[1], pooling="mlp_mean")
    report = exported(load_artifact(head), load_checkpoint(backbone), tmp_path / "bundle")
    assert report.status == "passed"


@pytest.mark.parametrize(
    "outer", sorted(set(MULTIMODAL) - {spec.model_type for spec in BACKBONES.values()})
)
def test_the_text_part_of_every_other_model_gives_the_states_that_the_whole_one_gives(
    tmp_path, outer
):
    backbone = make_backbone(tmp_path / "backbone", BackboneSpec(outer))
    head = make_artifact(tmp_path / "head", backbone, layers=[0, 3])
    report = exported(load_artifact(head), load_checkpoint(backbone), tmp_path / "bundle")
    assert report.status == "passed"
    assert report.reference.startswith("llm-siren" if outer == "got_ocr2" else "transformers 5.")


def test_a_trajectory_head_is_compared_on_the_text_part_of_a_model(tmp_path, backbone_folder):
    head = make_trajectory_head(tmp_path / "head", backbone_folder("mistral"), blocks=4)
    backbone = make_chat_backbone(tmp_path / "chat", backbone_folder("mistral3"), CHATML)
    report = exported(load_artifact(head), load_checkpoint(backbone), tmp_path / "bundle")
    assert report.status == "passed"
    assert report.reference.startswith("transformers 5.")


def test_a_weight_that_changed_beneath_the_graph_drifts(tmp_path, copied):
    artifact, folder = copied("deberta")
    checkpoint = load_checkpoint(folder)

    def changed(progress):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["deberta.encoder.layer.1.output.dense.weight"] *= 1.01
        save_file(tensors, path, metadata={"format": "pt"})
        return LlmSiren(artifact, checkpoint).scores(progress)

    with pytest.raises(BundleError, match="drift from transformers"):
        export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=changed)


def test_weights_that_transformers_does_not_find_are_no_reference(copied):
    artifact, folder = copied("modernbert")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.Wo.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    reference = LlmSiren(artifact, load_checkpoint(folder))
    with pytest.raises(ReferenceUnavailable, match=r"does not find 'layers\.2\.mlp\.Wo\.weight'"):
        reference.scores(silent)


_CODE = """
from transformers import ModernBertConfig, ModernBertModel

class Config(ModernBertConfig):
    model_type = "modernbert"

class Model(ModernBertModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        raise RuntimeError("the checkpoint's own code ran")
"""


@pytest.mark.parametrize(
    ("auto_class", "message"),
    [("AutoModel", "own code ran"), ("AutoModelForMaskedLM", "would not run the code")],
)
def test_the_code_of_a_checkpoint_is_run_or_there_is_no_reference(
    tmp_path, copied, monkeypatch, auto_class, message
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.syspath_prepend(str(tmp_path / "hf"))
    artifact, folder = copied("modernbert")
    (folder / "modeling_own.py").write_text(_CODE)
    config = json.loads((folder / "config.json").read_bytes())
    config["auto_map"] = {"AutoConfig": "modeling_own.Config", auto_class: "modeling_own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    reference = LlmSiren(artifact, load_checkpoint(folder, trust_remote_code=True))
    with pytest.raises(ReferenceUnavailable, match=message):
        reference.scores(silent)
