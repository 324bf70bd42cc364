"""Trajectory artifacts in which anything is off, and checkpoints without their template."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import make_artifact
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.chat_template import read_chat_format
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.tune.tune import tune
from siren_runtime.errors import ArtifactError, CheckpointError, InputError
from trajectories import CHATML, make_chat_backbone, make_trajectory_head


@pytest.fixture
def folder(tmp_path):
    """The files of a head on the second block of 32 channels."""
    (tmp_path / "config.json").write_text('{"hidden_size": 32}')
    return make_trajectory_head(tmp_path / "head", tmp_path)


def test_a_whole_one_is_read(folder):
    artifact = load_artifact(folder)
    assert (artifact.task, artifact.head.layers) == ("trajectory", (1,))
    assert (artifact.head.spec.layers, artifact.head.weight.shape) == ([1], (32,))


@pytest.mark.parametrize("shapes", [((32,), ()), ((1, 32), (1,)), ((32,), (1,))])
def test_weights_are_a_row_or_a_vector(folder, shapes):
    weight, bias = (np.ones(shape, np.float16) for shape in shapes)
    save_file({"head.weight": weight, "head.bias": bias}, folder / "siren.safetensors")
    head = load_artifact(folder).head
    assert (head.weight.dtype, head.weight.shape, head.bias) == (np.float32, (32,), 1.0)


def module(**fields):
    return lambda c, t: c["siren_module"].update(fields)


def without(part, key):
    return lambda c, t: c[part].pop(key)


def render(**fields):
    return lambda c, t: c["render"].update(fields)


def tensor(name, value, dtype=np.float32):
    return lambda c, t: t.update({name: np.asarray(value, dtype)})


FAULTS = {
    "pooling-mean": (module(pooling_type="residual_mean"), "siren_module.pooling_type"),
    "no-pooling": (without("siren_module", "pooling_type"), "pooling_type"),
    "index-and-blocks-differ": (module(hidden_state_index=3), "is 3 and early_exit_blocks 2"),
    "no-index": (without("siren_module", "hidden_state_index"), "hidden_state_index"),
    "index-zero": (module(hidden_state_index=0, early_exit_blocks=0), "hidden_state_index"),
    "index-negative": (module(hidden_state_index=-1), "hidden_state_index"),
    "index-a-string": (module(hidden_state_index="2"), "hidden_state_index"),
    "blocks-a-fraction": (module(early_exit_blocks=1.5), "early_exit_blocks"),
    "no-blocks": (without("siren_module", "early_exit_blocks"), "early_exit_blocks"),
    "no-module": (lambda c, t: c.pop("siren_module"), "siren_module"),
    "no-render": (lambda c, t: c.pop("render"), "render"),
    "tools-plain": (render(tools="plain"), "render.tools"),
    "truncation-right": (render(truncation="right"), "render.truncation"),
    "render-of-another-kind": (render(thoughts=False), "unknown field `thoughts`"),
    "no-max-length": (without("inference", "max_length"), "max_length"),
    "max-length-zero": (lambda c, t: c["inference"].update(max_length=0), "max_length"),
    "threshold-over-one": (
        lambda c, t: c["inference"].update(default_threshold=1.5),
        "default_threshold",
    ),
    "labels": (
        lambda c, t: c["inference"].update(labels={"a": {"threshold": 0.5}}),
        "none, since",
    ),
    "task-of-content": (lambda c, t: c.update(task="content"), "selected_layers"),
    "another-task": (lambda c, t: c.update(task="trajectories"), "'trajectory'"),
    "no-weight": (lambda c, t: t.pop("head.weight"), "missing 'head.weight'"),
    "no-bias": (lambda c, t: t.pop("head.bias"), "missing 'head.bias'"),
    "another-tensor": (tensor("head.scale", [1]), "unexpected 'head.scale'"),
    "weight-of-two-classes": (tensor("head.weight", np.ones((2, 32))), r"has shape \(2, 32\)"),
    "bias-of-two": (tensor("head.bias", [1, 2]), r"'head.bias' has shape \(2,\)"),
    "weight-nan": (tensor("head.weight", np.full(32, np.nan)), "32 values"),
    "bias-inf": (tensor("head.bias", [np.inf]), "'head.bias' has 1 values"),
    "weight-of-integers": (tensor("head.weight", np.ones(32), np.int32), "expected a float dtype"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_contradicts_itself_is_refused_by_name(folder, fault):
    change, match = FAULTS[fault]
    config = json.loads((folder / "siren_config.json").read_text())
    tensors = load_file(folder / "siren.safetensors")
    change(config, tensors)
    (folder / "siren_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "siren.safetensors")
    with pytest.raises(ArtifactError, match=match) as told:
        load_artifact(folder)
    assert str(folder) in str(told.value)


@pytest.fixture
def chat(tmp_path, backbone_folder):
    return make_chat_backbone(tmp_path / "chat", backbone_folder("qwen3"), CHATML)


def _export(head, backbone, tmp_path):
    return export_bundle(load_artifact(head), load_checkpoint(backbone), tmp_path / "bundle")


def test_a_head_of_another_backbone_is_refused(tmp_path, chat, backbone_folder):
    deep = make_trajectory_head(tmp_path / "deep", chat, blocks=40)
    with pytest.raises(ArtifactError, match="selected layer 39 is out of range"):
        _export(deep, chat, tmp_path)
    config = json.loads((chat / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": config["hidden_size"] - 1}))
    narrow = make_trajectory_head(tmp_path / "narrow", tmp_path)
    with pytest.raises(ArtifactError, match=r"head\.weight reads \d+ channels"):
        _export(narrow, chat, tmp_path)
    encoder = make_chat_backbone(tmp_path / "encoder", backbone_folder("bert"), CHATML)
    with pytest.raises(ArtifactError, match="'bert' is an encoder"):
        _export(make_trajectory_head(tmp_path / "bert", encoder), encoder, tmp_path)
    assert not (tmp_path / "bundle").exists()


def test_a_trajectory_head_shares_no_pass_and_is_not_tuned(tmp_path, chat):
    trajectory = load_artifact(make_trajectory_head(tmp_path / "head", chat))
    content = load_artifact(make_artifact(tmp_path / "content", chat))
    for heads in ((trajectory, content), (content, trajectory), (trajectory, trajectory)):
        with pytest.raises(ArtifactError):
            together(dict(zip("ab", heads, strict=True)))
    with pytest.raises(InputError, match="this head scores trajectories; name the precision"):
        tune(trajectory, load_checkpoint(chat), tmp_path / "bundle")


def _with(folder, template=None, **config):
    path = folder / "tokenizer_config.json"
    if template is None:
        (folder / "chat_template.jinja").unlink()
    else:
        (folder / "chat_template.jinja").write_bytes(template)
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return load_checkpoint(folder)


def test_the_template_is_the_file_or_that_of_the_tokenizer_config(chat):
    named = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "c"}]
    assert read_chat_format(_with(chat, b"a", chat_template="b")).template == "a"
    assert read_chat_format(_with(chat, b"a", eos_token="<|im_end|>")).tokens["eos_token"] == (
        "<|im_end|>"
    )
    assert read_chat_format(_with(chat, chat_template="b")).template == "b"
    (chat / "chat_template.jinja").touch()
    assert read_chat_format(_with(chat, chat_template=named)).template == "c"


@pytest.mark.parametrize(
    ("template", "config", "match"),
    [
        (None, {"chat_template": None}, "has no chat template"),
        (None, {"chat_template": 3}, "chat_template is 3; expected a template"),
        (None, {"chat_template": [{"name": "rag", "template": "a"}]}, "one is named default"),
        (b"{% for %}", {}, "chat_template.jinja: not a valid chat template"),
        (b"\xff", {}, "chat_template.jinja: not UTF-8"),
    ],
)
def test_a_checkpoint_without_a_usable_template_is_refused(chat, template, config, match):
    with pytest.raises(CheckpointError, match=match):
        read_chat_format(_with(chat, template, **config))


def test_an_onnx_file_is_no_backbone_of_a_trajectory_head(chat):
    with pytest.raises(CheckpointError, match="an ONNX file; a trajectory head reads"):
        read_chat_format(replace(load_checkpoint(chat), onnx=object()))
