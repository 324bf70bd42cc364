"""A GGUF file is read as transformers reads it, and scores as the folder that it was made of."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from backbones import BACKBONES, BackboneSpec
from gguf_files import write_gguf
from models import make_artifact, make_backbone
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify import gguf_reference
from siren_runtime import Guard
from siren_runtime.commands.siren import app
from siren_runtime.errors import CheckpointError

NAMES = ("llama", "llama-attention-bias", "llama-head-dim", "mistral", "qwen2", "qwen3")
Folders = Callable[[str], Path]


def pre_of(name: str) -> str:
    return "qwen2" if name.startswith("qwen") else "gpt-2"


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    def run(head: Path, backbone: Path, *options: str) -> tuple[int, str]:
        arguments = ["export", head, "--backbone", backbone, "-o", tmp_path / "bundle", *options]
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.stderr

    return run


def theirs(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )


@pytest.mark.parametrize("name", [*NAMES, "llama-mlp-bias", "qwen3-attention-bias"])
def test_tensors_are_those_of_the_folder_that_the_file_was_made_of(
    name: str, backbone_folder: Folders, tmp_path: Path
) -> None:
    folder = backbone_folder(name)
    path = write_gguf(tmp_path / "model.gguf", folder, pre=pre_of(name))
    ours, original = load_checkpoint(path).weights, load_checkpoint(folder).weights
    assert set(ours.tensors) == set(original.tensors)
    for tensor in ours.tensors:
        np.testing.assert_array_equal(ours.read(tensor), original.read(tensor).astype(np.float32))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_tensors_are_those_that_transformers_reads(
    kind: str, name: str, backbone_folder: Folders, tmp_path: Path
) -> None:
    types = {"attn": kind, "ffn": kind, "token_embd": kind}
    check_tensors(
        write_gguf(tmp_path / "model.gguf", backbone_folder(name), types=types, pre=pre_of(name))
    )


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])  # in blocks of 256, wider than a tiny backbone
def test_tensors_in_wide_blocks_are_those_that_transformers_reads(
    kind: str, tmp_path: Path
) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    folder = make_backbone(tmp_path / "backbone", BackboneSpec("llama", wide))
    types = {"attn": kind, "ffn": kind, "token_embd": kind}
    check_tensors(write_gguf(tmp_path / "model.gguf", folder, types=types, pre=pre_of("llama")))


def check_tensors(path: Path) -> None:
    weights = load_checkpoint(path).weights
    for tensor, values in theirs(path).state_dict().items():
        ours = weights.read(tensor.removeprefix("model.")).astype(np.float32)
        np.testing.assert_array_equal(ours, values.numpy())


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_rows_of_a_tensor_are_those_of_the_whole(
    name: str, backbone_folder: Folders, tmp_path: Path
) -> None:
    types = {"attn": "Q4_1", "token_embd": "Q8_0"}
    path = write_gguf(tmp_path / "model.gguf", backbone_folder(name), types=types, pre=pre_of(name))
    weights = load_checkpoint(path).weights
    for tensor in ("embed_tokens.weight", "layers.1.self_attn.q_proj.weight", "norm.weight"):
        whole = weights.read(tensor)
        for rows in (slice(3, 17), slice(0, 1), slice(60, 64)):
            np.testing.assert_array_equal(weights.read(tensor, rows), whole[rows])


@pytest.mark.parametrize("name", [*NAMES, "llama-linear-rope"])
def test_the_config_is_that_of_the_folder(
    name: str, backbone_folder: Folders, tmp_path: Path
) -> None:
    folder = backbone_folder(name)
    path = write_gguf(tmp_path / "model.gguf", folder, pre=pre_of(name))
    ours = AutoConfig.for_model(**load_checkpoint(path).config).to_dict()
    original = AutoConfig.from_pretrained(folder).to_dict()
    apart = {"_name_or_path", "architectures", "dtype", "transformers_version"}
    apart |= {"bos_token_id", "eos_token_id", "pad_token_id"}  # of the tokenizer's files there
    if name == "mistral":  # a llama to llama.cpp
        apart |= {"model_type", "sliding_window", "attention_bias", "mlp_bias", "pretraining_tp"}
    for key in ours.keys() & original.keys() - apart:
        assert ours[key] == pytest.approx(original[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_verified_against_what_transformers_reads_of_the_file(
    name: str, backbone_folder: Folders, tmp_path: Path, export: Callable[..., tuple[int, str]]
) -> None:
    path = write_gguf(
        tmp_path / "model.gguf",
        backbone_folder(name),
        types={"ffn": "Q8_0", "attn": "Q5_1"},
        pre=pre_of(name),
    )
    head = make_artifact(tmp_path / "head", backbone_folder(name))
    status, err = export(head, path)
    assert status == 0, err
    report = Guard.load(tmp_path / "bundle").manifest.verification
    assert report.status == "passed"
    assert report.max_difference is not None
    assert report.max_difference < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_an_export_of_gemma_is_verified_likewise(
    name: str,
    precision: str,
    backbone_folder: Folders,
    tmp_path: Path,
    export: Callable[..., tuple[int, str]],
) -> None:
    types = {"token_embd": "Q8_0", "blk": "Q4_1"}
    path = write_gguf(tmp_path / "model.gguf", backbone_folder(name), types=types)
    weights, original = (load_checkpoint(p).weights for p in (path, backbone_folder(name)))
    norm = "layers.2.pre_feedforward_layernorm.weight"
    np.testing.assert_allclose(weights.read(norm), original.read(norm), atol=1e-6)
    head = make_artifact(tmp_path / "head", backbone_folder(name))
    status, err = export(head, path, "--precision", precision)
    assert status == 0, err
    report = Guard.load(tmp_path / "bundle").manifest.verification
    assert report.max_difference is not None
    assert report.max_difference < 1e-4


def test_scores_are_those_of_the_folder_where_nothing_is_quantized(
    backbone_folder: Folders, tmp_path: Path, export: Callable[..., tuple[int, str]]
) -> None:
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"))
    head = make_artifact(tmp_path / "head", backbone_folder("llama"), pooling="mlp_mean")
    assert export(head, path)[0] == 0
    of_file = Guard.load(tmp_path / "bundle")
    assert export(head, backbone_folder("llama"), "--overwrite")[0] == 0
    of_folder = Guard.load(tmp_path / "bundle")
    for text in ("How do I bake bread?", "42 foxes\n\n1. and a lock", "Où est la gare?"):
        assert of_file.score(text).score == pytest.approx(of_folder.score(text).score, abs=1e-6)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama3_factors(rope: dict[str, object], head_dim: int) -> np.ndarray:
    """What transformers' own scaling divides each frequency by."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model(
        "llama", head_dim=head_dim, hidden_size=4 * head_dim, rope_parameters=rope
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = float(rope["rope_theta"]) ** -(torch.arange(0, head_dim, 2) / head_dim)
    return (plain / scaled).numpy().astype(np.float32)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = BackboneSpec("llama", {"head_dim": 32, "rope_parameters": LLAMA3})
    return make_backbone(tmp_path_factory.mktemp("llama3") / "backbone", spec)


def test_llama_3s_scaling_of_positions_is_read_from_its_tensor(
    llama3: Path, tmp_path: Path, export: Callable[..., tuple[int, str]]
) -> None:
    factors = llama3_factors(LLAMA3, 32)
    assert len(set(factors.tolist())) > 4  # high, low, and some between
    path = write_gguf(
        tmp_path / "model.gguf",
        llama3,
        change=lambda writer: writer.add_tensor("rope_freqs.weight", factors),
    )
    checkpoint = load_checkpoint(path)
    assert checkpoint.config["rope_parameters"] == pytest.approx(LLAMA3)
    # transformers drops the tensor, so the reference is told.
    assert theirs(path).config.rope_parameters["rope_type"] == "default"
    assert gguf_reference.read_config(checkpoint).ours == ("rope_parameters",)
    status, err = export(make_artifact(tmp_path / "head", llama3), path)
    assert status == 0, err
    assert "it does not read rope_parameters" in err


def test_other_factors_of_positions_are_refused(llama3: Path, tmp_path: Path) -> None:
    for index, factors in enumerate(
        (
            llama3_factors({**LLAMA3, "high_freq_factor": 5.0}, 32),
            np.full(16, np.nan, np.float32),
            np.ones(15, np.float32),
        )
    ):
        path = write_gguf(
            tmp_path / f"{index}.gguf",
            llama3,
            change=lambda writer, factors=factors: writer.add_tensor("rope_freqs.weight", factors),
        )
        with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
            load_checkpoint(path)


def test_qwen3s_heads_are_as_wide_as_the_header_says(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("qwen3"), pre="qwen2")
    assert load_checkpoint(path).config["head_dim"] == 24
    with pytest.raises(RuntimeError):  # transformers takes 128, its default
        theirs(path)
    assert gguf_reference.read_config(load_checkpoint(path)).ours == ("head_dim",)


def test_a_tensor_that_is_missing_is_missed_in_the_file_and_in_no_config_json(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    """A bias in one block says that all have one."""
    path = write_gguf(
        tmp_path / "model.gguf",
        backbone_folder("llama"),
        change=lambda writer: writer.add_tensor("blk.1.attn_q.bias", np.ones((64,), np.float32)),
    )
    head = load_artifact(str(make_artifact(tmp_path / "head", backbone_folder("llama"))))
    with pytest.raises(CheckpointError, match=r"q_proj\.bias' is missing") as refusal:
        export_bundle(head, load_checkpoint(path), tmp_path / "bundle")
    assert str(path) in str(refusal.value)
    assert "config.json" not in str(refusal.value)


def test_an_export_without_the_gguf_package_says_what_to_install(
    backbone_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"))
    for module in list(sys.modules):
        if module.startswith("siren_export.sources.gguf"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"\.\[gguf\]"):
        load_checkpoint(path)


def test_a_head_trained_for_the_folder_names_the_file_as_its_backbone(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    """`base_model.model_id` may be a GGUF file, so that --backbone is not needed."""
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"))
    head = make_artifact(tmp_path / "head", backbone_folder("llama"))
    config = json.loads((head / "siren_config.json").read_text())
    config["base_model"]["model_id"] = str(path)
    (head / "siren_config.json").write_text(json.dumps(config))
    arguments = ["export", str(head), "-o", str(tmp_path / "bundle"), "--no-stream"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_names_of_the_parametrised_backbones_are_there() -> None:
    assert set(NAMES) <= set(BACKBONES)
