"""A trained model from its wheel is a folder that every peer can load."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from siren_bench.subjects.real_models import REAL_MODELS, RealModel
from siren_bench.subjects.subject import find_subject, folder_name
from siren_export.families.registry import parse_config
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.recipes import find_recipe

transformers = pytest.importorskip("transformers")


def test_smollm2_is_what_transformers_loads(tmp_path: Path) -> None:
    subject = find_subject("smollm2", tmp_path / folder_name("smollm2"))
    checkpoint = load_checkpoint(str(subject.backbone))
    backbone = parse_config(checkpoint.config, "config.json")
    assert (backbone.blocks, backbone.hidden_size, backbone.vocab_size) == (30, 576, 49152)
    shipped = find_recipe("smollm2")
    assert shipped is not None
    assert load_artifact(subject.head).head.spec == load_artifact(shipped.artifact).head.spec
    assert not subject.random
    model = transformers.AutoModelForCausalLM.from_pretrained(subject.backbone)
    state = model.state_dict()
    tokenizer = transformers.AutoTokenizer.from_pretrained(subject.backbone)
    assert "<|im_start|>" in tokenizer.chat_template
    for name in checkpoint.weights.tensors:
        np.testing.assert_array_equal(checkpoint.weights.read(name), state[f"model.{name}"].numpy())
    again = find_subject("smollm2", tmp_path / folder_name("smollm2"))
    assert again == subject


def test_a_model_with_a_head_on_every_block_is_to_be_had_beside_the_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone_folder: Callable[[str], Path]
) -> None:
    def write(model: RealModel, folder: Path, progress: object) -> None:
        assert model.guard == "smollm2"
        shutil.copytree(backbone_folder("llama"), folder)

    monkeypatch.setattr("siren_bench.subjects.subject.write_real_model", write)
    name = "smollm2-all-blocks"
    monkeypatch.setitem(REAL_MODELS, name, replace(REAL_MODELS[name], channels_per_layer=9))
    subject = find_subject(name, tmp_path / folder_name(name))
    blocks = load_checkpoint(str(subject.backbone)).config["num_hidden_layers"]
    assert subject.random
    assert load_artifact(subject.head).head.taps.deepest == blocks - 1
