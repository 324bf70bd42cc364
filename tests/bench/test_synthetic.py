"""Synthetic checkpoints are what a published checkpoint of that shape would be."""

import json

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from guards import load_guard
from reference import load_reference
from siren_bench.subjects.shapes import SHAPES
from siren_bench.subjects.subject import synthesize
from siren_bench.subjects.synthetic import checkpoint_bytes, write_checkpoint
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from texts import TEXTS


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
    ],
)
def test_the_shapes_have_the_published_number_of_parameters(name, parameters):
    assert checkpoint_bytes(SHAPES[name].config) == 2 * parameters


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 40_000])
def test_transformers_loads_every_tensor_and_misses_none(tmp_path, tiny_shape, shard_bytes):
    write_checkpoint(tmp_path, tiny_shape.config, shard_bytes=shard_bytes)
    sharded = (tmp_path / "model.safetensors.index.json").exists()
    assert sharded == (shard_bytes == 40_000)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    files = list(tmp_path.glob("*.safetensors"))
    assert all(file.stat().st_size < shard_bytes + 100_000 for file in files)
    weight = model.get_parameter("model.layers.1.mlp.up_proj.weight").float()
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_synthetic_guard_agrees_with_llm_siren(tmp_path, tiny_shape):
    made = synthesize(tiny_shape, tmp_path)
    export_bundle(load_artifact(made.head), load_checkpoint(made.backbone), tmp_path / "bundle")
    scores = [r.score for r in load_guard(tmp_path / "bundle", threads=1).score_batch(TEXTS)]
    expected = [r.score for r in load_reference(made.head).score_batch(TEXTS)]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_equal_seeds_write_equal_files_and_other_seeds_other_weights(tmp_path, tiny_shape):
    for folder, seed in [("first", 1), ("second", 1), ("third", 2)]:
        write_checkpoint(tmp_path / folder, tiny_shape.config, seed=seed)
    first, second, third = (
        (tmp_path / folder / "model.safetensors").read_bytes()
        for folder in ("first", "second", "third")
    )
    assert first == second
    assert first != third


def test_the_head_points_to_its_backbone_and_reads_every_layer(tmp_path, tiny_shape):
    made = synthesize(tiny_shape, tmp_path)
    config = json.loads((made.head / "siren_config.json").read_text())
    assert config["base_model"]["model_id"] == str(made.backbone)
    assert config["siren_module"]["selected_layers"] == list(range(tiny_shape.layers))
    assert config["mlp"]["input_dim"] == tiny_shape.features
