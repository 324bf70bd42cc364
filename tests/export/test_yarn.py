"""YaRN, a scaling of positions: as transformers has it, in texts beyond the original context."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from backbones import BackboneSpec
from gguf_files import write_gguf
from guards import load_guard
from models import make_artifact, make_backbone
from reference import load_reference
from siren_export.export import export_bundle
from siren_export.families.registry import parse_config
from siren_export.graph.rotary import inverse_frequencies
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify import gguf_reference
from siren_runtime.errors import CheckpointError

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
DECODER = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 256, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
TEXT = "How do I bake bread, and where is the key of the old box with 42 foxes? " * 2
Folders = Callable[[str], Path]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"factor": 1.0},
        {"factor": 0.5},
        {"original_max_position_embeddings": 4096},
        {"original_max_position_embeddings": 4096, "truncate": False},
        {"original_max_position_embeddings": 2},
        {"original_max_position_embeddings": 512, "beta_fast": 8.0, "beta_slow": 2.0},
        {"original_max_position_embeddings": 512, "beta_fast": 2.0, "beta_slow": 2.0},
        {"attention_factor": 0.9},
        {"attention_factor": None, "mscale": 0.7, "mscale_all_dim": 1.2},
        {"mscale": 0.7},
        {"mscale": 0.0, "mscale_all_dim": 1.2},
        {"rope_theta": 1.5, "original_max_position_embeddings": 512},
    ],
    ids=str,
)
def test_frequencies_and_scale_are_those_of_transformers(keys: dict[str, Any]) -> None:
    rope = {**YARN, **keys}
    config = LlamaConfig(**DECODER, rope_parameters=dict(rope))
    expected, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    ours = parse_config({**DECODER, "rope_parameters": rope}, "config.json").rope
    np.testing.assert_allclose(inverse_frequencies(ours, 64), expected.numpy(), rtol=2e-6)
    assert ours.scale == pytest.approx(scale, rel=1e-6)


FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo2"), YARN),
    "gemma3_text": {"full_attention": YARN, "sliding_attention": PLAIN},
    "modernbert": {"full_attention": YARN, "sliding_attention": PLAIN},
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_text_beyond_the_original_context_scores_as_in_transformers(
    model_type: str, tmp_path: Path
) -> None:
    spec = BackboneSpec(model_type, written={"rope_parameters": FAMILIES[model_type]})
    backbone = make_backbone(tmp_path / "backbone", spec)
    head = make_artifact(tmp_path / "head", backbone, max_length=128)
    export_bundle(load_artifact(str(head)), load_checkpoint(backbone), tmp_path / "bundle")
    guard, (expected,) = load_guard(tmp_path / "bundle"), load_reference(head).score_batch([TEXT])
    found = guard.score(TEXT)
    assert found.tokens > 3 * YARN["original_max_position_embeddings"]
    assert 0.01 < found.score < 0.99
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    if model_type != "modernbert":
        with guard.stream() as stream:
            for start in range(0, len(TEXT), 40):
                last = stream.feed(TEXT[start : start + 40])
        assert last.score == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize("model_type", ["granite", "smollm3", "gemma2"])
def test_other_families_read_it_too(model_type: str) -> None:
    config = {**DECODER, "model_type": model_type, "num_key_value_heads": 2}
    rope = parse_config({**config, "rope_scaling": YARN, "rope_theta": 1e4}, "config.json").rope
    assert (rope.kind, rope.factor, rope.original_max_position_embeddings) == ("yarn", 8.0, 16)


def test_an_absent_original_context_is_the_longest_one() -> None:
    rope = {key: value for key, value in YARN.items() if not key.startswith("original")}
    found = parse_config({**DECODER, "rope_parameters": rope}, "config.json").rope
    assert found.original_max_position_embeddings == 2048


def yarn_file(backbone: Path, path: Path, **keys: Any) -> Path:
    scaling = {"type": "yarn", "factor": 8.0, "original_context_length": 16, **keys}
    values = {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    return write_gguf(path, backbone, values=values)


def test_a_header_is_read_as_the_config_that_it_was_made_of(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    betas = {"beta_fast": 16.0, "beta_slow": 2.0}
    config = load_checkpoint(backbone_folder("llama")).config
    expected = parse_config({**config, "rope_parameters": {**YARN, **betas}}, "config.json").rope
    named = {f"yarn_{name}": value for name, value in betas.items()}
    file = load_checkpoint(yarn_file(backbone_folder("llama"), tmp_path / "model.gguf", **named))
    assert parse_config(file.config, "model.gguf").rope == expected
    # transformers reads nothing of it, so the reference is told.
    assert gguf_reference.read_config(file).ours == ("rope_parameters",)
    absent = {"original_context_length": None}
    bare = load_checkpoint(yarn_file(backbone_folder("llama"), tmp_path / "bare.gguf", **absent))
    found = parse_config(bare.config, "bare.gguf").rope
    assert found.original_max_position_embeddings == 128
    assert (found.beta_fast, found.beta_slow) == (32.0, 1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("yarn_attn_factor", 1.2), ("yarn_ext_factor", 0.5), ("yarn_log_multiplier", 0.1)],
)
def test_what_would_make_another_rope_is_refused_by_its_key(
    key: str, value: float, backbone_folder: Folders, tmp_path: Path
) -> None:
    path = yarn_file(backbone_folder("llama"), tmp_path / "model.gguf", **{key: value})
    with pytest.raises(CheckpointError, match=rf"llama\.rope\.scaling\.{key}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor is missing, which 'yarn' needs"),
        ({"rope_scaling": {**YARN, "factor": None}}, "factor"),
        ({"rope_scaling": {**YARN, "beta_fast": 0.5}}, "beta_fast 0.5 and beta_slow 1.0"),
        ({"rope_scaling": {**YARN, "beta_slow": 1e-300}}, "beta_slow`; found 1e-300"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta"),
        ({"rope_parameters": {**YARN, "rope_theta": 1.0}}, "a rope_theta above 1"),
        ({"rope_scaling": {**YARN, "llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 64},
            "original_max_position_embeddings is 64 and 16 in rope_scaling",
        ),
    ],
    ids=str,
)
def test_a_yarn_that_makes_no_rope_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        parse_config({**DECODER, **keys}, "config.json")
    assert words in str(refusal.value)


def test_a_key_that_transformers_does_not_look_for_is_refused() -> None:
    ropes = {"full_attention": {**YARN, "truncate": False}, "sliding_attention": PLAIN}
    with pytest.raises(CheckpointError, match="truncate is false"):
        parse_config({"model_type": "gemma3_text", "rope_parameters": ropes}, "config.json")
