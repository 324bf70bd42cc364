"""Of a model that reads images too, the text part is read: its config and its weights."""

import copy
import shutil
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, PreTrainedConfig

from backbones import MULTIMODAL
from siren_export.families.gemma import Gemma
from siren_export.families.llama import Llama
from siren_export.families.multimodal import MODEL_TYPES
from siren_export.families.olmo2 import Olmo2
from siren_export.families.registry import parse_config
from siren_export.graph.weights import BackboneWeights
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.errors import CheckpointError

DECODERS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "granite", "smollm3", "olmo2",
    "phi3",
)  # fmt: skip


def text_part(model_type: str, **keys: Any) -> Gemma | Llama | Olmo2:
    config = parse_config({"model_type": model_type, **keys}, "config.json")
    assert isinstance(config, Gemma | Llama | Olmo2)
    return config


def test_a_tiny_backbone_can_be_made_of_every_one():
    assert set(MULTIMODAL) == set(MODEL_TYPES)


@pytest.mark.parametrize("outer", MODEL_TYPES)
def test_an_empty_text_config_is_the_one_that_transformers_takes(outer):
    expected = AutoConfig.for_model(outer, text_config={}).text_config
    found = text_part(outer, text_config={})
    assert found.model_type == expected.model_type
    check_sizes(found, expected)


@pytest.mark.parametrize("text", DECODERS)
def test_every_decoder_may_be_the_text_part_and_what_it_leaves_out_is_as_in_transformers(text):
    expected = AutoConfig.for_model("llava", text_config={"model_type": text}).text_config
    check_sizes(text_part("llava", text_config={"model_type": text}), expected)


@pytest.mark.parametrize("given", [{}, {"model_type": "qwen3", "num_hidden_layers": 7}], ids=str)
def test_voxtrals_text_part_has_its_own_defaults_whatever_its_type(given):
    expected = AutoConfig.for_model("voxtral", text_config=dict(given)).text_config
    found = text_part("voxtral", text_config=given)
    check_sizes(found, expected)
    assert isinstance(found, Llama)
    assert found.head_dim == expected.head_dim == 128
    assert found.rope.theta == expected.rope_parameters["rope_theta"] == 1e8


@pytest.mark.parametrize(
    "given",
    [
        {"rope_theta": 1e6},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
    ],
    ids=str,
)
def test_voxtrals_theta_is_the_files_own_or_its_default(given):
    expected = AutoConfig.for_model("voxtral", text_config=copy.deepcopy(given)).text_config
    rope = text_part("voxtral", text_config=given).rope
    assert rope.theta == expected.rope_parameters["rope_theta"]
    assert rope.kind == expected.rope_parameters["rope_type"]
    assert rope.factor == expected.rope_parameters.get("factor", 1.0)


def test_a_theta_of_null_is_the_default() -> None:
    assert text_part("voxtral", text_config={"rope_theta": None}).rope.theta == 1e8


def check_sizes(found: Gemma | Llama | Olmo2, expected: PreTrainedConfig) -> None:
    for ours, theirs in (
        ("vocab_size", "vocab_size"),
        ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("blocks", "num_hidden_layers"),
        ("attention_heads", "num_attention_heads"),
        ("kv_heads", "num_key_value_heads"),
        ("rms_norm_eps", "rms_norm_eps"),
        ("max_position_embeddings", "max_position_embeddings"),
    ):
        assert getattr(found, ours) == getattr(expected, theirs), ours


def test_keys_of_images_are_not_looked_at_and_those_of_text_are():
    images = {"image_grid_pinpoints": [[384, 768]], "vision_config": {"image_size": 896}}
    text = {"hidden_size": 512, "num_hidden_layers": 3, "rope_theta": 5e5}
    config = text_part("llava_next", **images, text_config=text)
    assert isinstance(config, Llama)
    assert (config.hidden_size, config.blocks, config.rope.theta) == (512, 3, 5e5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gemma3"}, "text_config"),
        ({"model_type": "fast_vlm"}, "text_config"),  # one that is absent is not one of no keys
        ({"model_type": "got_ocr2", "text_config": None}, "text_config"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "llama"}},
            "text_config.model_type 'llama' is none that a gemma3 is read with: gemma3_text",
        ),
        (
            {"model_type": "mistral3", "text_config": {"model_type": "ministral3"}},
            "text_config.model_type 'ministral3' is none that a mistral3 is read with: llama, mi",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "bert"}},
            "model_type 'bert' is none",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "mixtral"}},
            "text_config.model_type 'mixtral' is a mixture of experts, which is not supported",
        ),
        ({"model_type": "llava", "text_config": {"model_type": ["llama"]}}, "['llama'] is none"),
        ({"model_type": "llava", "text_config": {"new_key": 1}}, 'text_config: unknown keys ["new'),
        ({"model_type": "llava", "text_config": {}, "new_key": 1}, 'unknown keys ["new_key"]'),
        ({"model_type": "paligemma", "text_config": {"model_type": "gemma2"}}, "not supported"),
    ],
)
def test_a_text_part_that_is_not_known_is_refused_by_name(config, message):
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        parse_config(config, "config.json")
    assert message in str(caught.value)


# Hubs have the first form; some releases of transformers stored the bare model, or the last one.
@pytest.mark.parametrize(
    "names",
    [
        {},
        {"language_model.model.": "language_model."},
        {"language_model.model.": "model.language_model.", "image_newline": "model.image_newline",
         "vision_tower.": "model.vision_tower.",
         "multi_modal_projector.": "model.multi_modal_projector."},
    ],
)  # fmt: skip
def test_the_text_parts_weights_are_found_by_every_name_that_they_had(
    tmp_path, backbone_folder, names
):
    folder = tmp_path / "backbone"
    shutil.copytree(backbone_folder("llava-next-granite"), folder)
    tensors = load_file(folder / "model.safetensors")
    for old, new in names.items():
        assert any(name.startswith(old) for name in tensors)
        tensors = {
            new + name.removeprefix(old) if name.startswith(old) else name: values
            for name, values in tensors.items()
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = load_checkpoint(folder)
    config = parse_config(checkpoint.config, checkpoint.source)
    assert isinstance(config, Llama)
    BackboneWeights(checkpoint.weights).check_prefix(*config.prefixes)
    assert {"embed_tokens.weight", "layers.0.mlp.gate_proj.weight", "norm.weight"} <= set(
        checkpoint.weights.tensors
    )
