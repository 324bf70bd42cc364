"""What is in the graph, and what never is."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from models import make_artifact
from siren_export.export import export_bundle
from siren_export.families.registry import parse_config
from siren_export.graph.builder import FLOAT, GuardGraph
from siren_export.guard.score import author_score
from siren_export.heads.registry import load_artifact
from siren_export.passes.table import row_of
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.errors import ArtifactError, CheckpointError


@pytest.fixture
def author(tmp_path, backbone_folder):
    """Return a function: backbone name, precision, options of make_artifact -> the graph."""

    def run(name: str, precision: str = "fp32", **options) -> GuardGraph:
        backbone = backbone_folder(name)
        artifact = load_artifact(make_artifact(tmp_path / "head", backbone, **options))
        checkpoint = load_checkpoint(backbone)
        config = parse_config(checkpoint.config, checkpoint.source)
        compute = row_of("onnxruntime", precision).compute
        return author_score(artifact, config, checkpoint.weights, compute)

    return run


@pytest.fixture
def changed_llama(tmp_path, backbone_folder):
    """Return a function: a change of the tensors -> a copy of the tiny Llama so changed."""

    def make(change) -> Path:
        folder = shutil.copytree(backbone_folder("llama"), tmp_path / "changed")
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def names(graph: GuardGraph) -> set[str]:
    return {str(node.name) for node in graph.model.graph}


def operators(graph: GuardGraph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


@pytest.mark.parametrize("name", ["qwen3", "bert"])
@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize("deepest", [0, 2, 3])
def test_the_graph_stops_at_the_deepest_tap(author, name, pooling, deepest):
    graph = author(name, layers=[0, deepest] if deepest else [0], pooling=pooling)
    blocks = {int(n) for node in names(graph) for n in re.findall(r"^layers?\.(\d+)/", node)}
    assert blocks == set(range(deepest + 1))
    block = f"layers.{deepest}" if name == "qwen3" else f"layer.{deepest}"
    assert (f"{block}/mlp_residual" in names(graph)) == (pooling == "residual_mean")
    assert not any("lm_head" in weight or "cls." in weight for weight in graph.weights)


@pytest.mark.parametrize(
    ("pooling", "layers", "normed"),
    [
        ("residual_mean", [0, 3], True),
        ("residual_mean", [0, 2], False),
        ("mlp_mean", [0, 3], False),
    ],
)
def test_the_final_norm_is_there_only_where_the_last_residual_is_read(
    author, pooling, layers, normed
):
    graph = author("qwen3", layers=layers, pooling=pooling)
    assert ("norm/RMSNormalization" in names(graph)) == normed


def test_the_graph_is_made_of_standard_operators_of_one_opset(author):
    for name in ("qwen3", "llama-mlp-bias", "bert"):
        graph = author(name)
        assert {node.domain for node in graph.model.graph} == {""}
        assert graph.model.opset_imports == {"": 23}


def test_node_names_are_unique_and_name_the_layer(author):
    graph = author("qwen3")
    assert len(names(graph)) == len(operators(graph))
    assert "layers.1/self_attn/q_proj/MatMul" in names(graph)
    assert "layers.3/mlp/down_proj/MatMul" in names(graph)


def test_in_float16_the_stream_norms_pooling_and_head_stay_in_float32(author):
    graph = author("llama-mlp-bias", precision="fp16")
    halves = {name for name, w in graph.weights.items() if w.dtype.name == "FLOAT16"}
    floats = {name for name, w in graph.weights.items() if w.dtype.name == "FLOAT"}
    assert {"embed_tokens.weight", "rotary/cos", "layers.0/self_attn/q_proj/weight"} <= halves
    assert {
        "layers.0/input_layernorm/weight",
        "norm/weight",
        "head/linear.0/weight",
        "head/layer_weights",
    } <= floats
    assert not any(name.startswith("head/") for name in halves)


def test_a_float16_mlp_does_not_overflow_where_its_product_would(tmp_path, changed_llama):
    """down_proj's output beyond 65504, which a float16 MLP without headroom turns into inf."""

    def enlarge(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"] *= np.float32(60)
        tensors["model.layers.1.mlp.down_proj.weight"] *= np.float32(1000)

    backbone = changed_llama(enlarge)
    head = load_artifact(make_artifact(tmp_path / "head", backbone))
    results = {}
    for precision in ("fp32", "fp16"):
        bundle = tmp_path / precision
        export_bundle(head, load_checkpoint(backbone), bundle, precision=precision)
        results[precision] = Guard.load(bundle).score("How do I bake bread?", features=True)
    assert np.abs(results["fp32"].features).max() > 65504
    assert results["fp16"].score == pytest.approx(results["fp32"].score, abs=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"), "is missing"),
        (
            lambda tensors: tensors.update(
                {"model.layers.2.mlp.up_proj.weight": np.zeros((96, 63), np.float32)}
            ),
            r"has shape \[96, 63\], expected \[96, 64\]",
        ),
    ],
)
def test_a_tensor_that_the_config_calls_for_is_checked(
    tmp_path, backbone_folder, changed_llama, change, message
):
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone_folder("llama")))
    checkpoint = load_checkpoint(changed_llama(change))
    config = parse_config(checkpoint.config, "config.json")
    with pytest.raises(CheckpointError, match=rf"layers\.2\.mlp\.up_proj\.weight' {message}"):
        author_score(artifact, config, checkpoint.weights, FLOAT)


def test_a_head_of_a_deeper_or_wider_backbone_is_refused(tmp_path, backbone_folder):
    backbone = backbone_folder("qwen3")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    checkpoint = load_checkpoint(backbone)
    config = parse_config(checkpoint.config, "config.json")
    assert config.blocks == 4
    with pytest.raises(ArtifactError, match=r"selected layer 3 is out of range.*blocks 0 to 1"):
        author_score(artifact, replace(config, blocks=2), checkpoint.weights, FLOAT)
    with pytest.raises(ArtifactError, match="layer 0 selects channel"):
        author_score(artifact, replace(config, hidden_size=8), checkpoint.weights, FLOAT)


def test_an_unknown_activation_is_refused(backbone_folder):
    config = load_checkpoint(backbone_folder("llama")).config
    with pytest.raises(
        CheckpointError, match=r"hidden_act 'mish' is not supported; supported: gelu"
    ):
        parse_config({**config, "hidden_act": "mish"}, "config.json")


def test_weights_that_float16_cannot_hold_are_refused(tmp_path, backbone_folder, changed_llama):
    def enlarge(tensors):
        tensors["model.layers.1.self_attn.o_proj.weight"][0, 0] = 1e6

    head = load_artifact(make_artifact(tmp_path / "head", backbone_folder("llama")))
    checkpoint = load_checkpoint(changed_llama(enlarge))
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.o_proj.*FLOAT16"):
        export_bundle(head, checkpoint, tmp_path / "bundle", precision="fp16")
    assert not (tmp_path / "bundle").exists()


def test_the_exported_file_passes_the_onnx_checker(tmp_path, backbone_folder):
    backbone = backbone_folder("qwen3")
    head = load_artifact(make_artifact(tmp_path / "head", backbone))
    export_bundle(head, load_checkpoint(backbone), tmp_path / "bundle")
    onnx.checker.check_model(str(tmp_path / "bundle" / "score.onnx"), full_check=True)
