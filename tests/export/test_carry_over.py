"""A matrix that a GGUF file has in blocks keeps them in an int4 bundle."""

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from backbones import BackboneSpec
from gguf_files import random_rows, write_gguf
from guards import load_guard
from models import make_artifact, make_backbone
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.gguf_blocks import LAYOUTS, unpack
from siren_export.sources.weights import BLOCK
from siren_runtime.commands.siren import app

TEXTS = ("How do I bake bread?", "foxes in boxes " * 8, "Où est la gare? 42", "a")
MATRICES = 4 * 7
Folders = Callable[[str], Path]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_blocks_taken_apart_make_the_values_of_the_matrix(kind: str) -> None:
    bits, has_minimums = LAYOUTS[kind]
    stored = gguf.GGMLQuantizationType[kind]
    data = random_rows(kind, 12, 512)
    blocks = unpack(data, stored)
    assert (blocks.minimums is not None) == has_minimums
    assert blocks.integers.max() == 2**bits - 1
    integers = blocks.integers.reshape(12, -1, BLOCK).astype(np.float32)
    if blocks.minimums is None:
        values = (integers - 2 ** (bits - 1)) * blocks.scales[:, :, None]
    else:
        values = integers * blocks.scales[:, :, None] + blocks.minimums[:, :, None]
    np.testing.assert_array_equal(values.reshape(12, -1), gguf.dequantize(data, stored))


def test_an_int4_bundle_of_q4_k_scores_as_the_float32_one(tmp_path: Path) -> None:
    """The head is made for the values that the file holds, so that scores spread."""
    spec = BackboneSpec("llama", {"hidden_size": 256, "intermediate_size": 256})
    folder = make_backbone(tmp_path / "backbone", spec)
    types = {"token_embd": "Q4_K", "blk": "Q4_K"}
    path = write_gguf(tmp_path / "model.gguf", folder, types=types)
    weights = load_checkpoint(path).weights
    values = {f"model.{name}": weights.read(name) for name in weights.tensors}
    values["lm_head.weight"] = values.pop("model.lm_head.weight")
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    check_equal(path, make_artifact(tmp_path / "head", folder), tmp_path)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_an_int4_bundle_scores_as_the_float32_one(
    kind: str, name: str, backbone_folder: Folders, tmp_path: Path
) -> None:
    """Tables, matrices whose rows are put in order, and matrices with biases too."""
    path = write_gguf(
        tmp_path / "model.gguf",
        backbone_folder(name),
        types={"token_embd": "Q8_0", "attn": kind, "ffn": kind},
        pre="qwen2" if name == "qwen2" else "gpt-2",
    )
    check_equal(path, make_artifact(tmp_path / "head", backbone_folder(name)), tmp_path)


def check_equal(path: Path, head: Path, folder: Path) -> None:
    artifact, checkpoint = load_artifact(str(head)), load_checkpoint(path)
    export_bundle(artifact, checkpoint, folder / "fp32")
    manifest = export_bundle(artifact, checkpoint, folder / "int4", precision="int4")
    assert manifest.carried_over == MATRICES + 1
    exact, carried = load_guard(folder / "fp32"), load_guard(folder / "int4")
    for text in TEXTS:
        assert carried.score(text).score == pytest.approx(exact.score(text).score, abs=1e-4)
        with carried.stream() as ours, exact.stream() as theirs:
            expected = theirs.feed(text).score
            assert ours.feed(text).score == pytest.approx(expected, abs=1e-4)
    assert any(0.001 < exact.score(text).score < 0.999 for text in TEXTS)


def test_what_is_not_in_blocks_is_rounded(backbone_folder: Folders, tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "model.gguf", backbone_folder("llama"), types={"ffn_up": "Q4_1", "ffn": "Q5_0"}
    )
    head = load_artifact(str(make_artifact(tmp_path / "head", backbone_folder("llama"))))
    manifest = export_bundle(head, load_checkpoint(path), tmp_path / "int4", precision="int4")
    assert manifest.carried_over == 4
    folder = load_checkpoint(backbone_folder("llama"))
    assert export_bundle(head, folder, tmp_path / "other", precision="int4").carried_over == 0


def exported(folder: Path, backbone: Path, head: Path, target: str) -> str:
    """What `siren export` says of an int4 bundle at `folder`."""
    arguments = ["export", head, "--backbone", backbone, "-o", folder, "--precision", "int4"]
    arguments += ["--target", target, "--no-verify"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_the_command_says_how_many_matrices_were_carried_over(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"), types={"blk": "Q4_0"})
    head = make_artifact(tmp_path / "head", backbone_folder("llama"))
    said = exported(tmp_path / "b", path, head, "onnxruntime")
    assert f"carried over: {MATRICES} matrices" in said
    assert load_guard(tmp_path / "b").manifest.carried_over == MATRICES
    assert "rounded anew" not in said
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "b")]).stdout
    assert re.search(f"carried over +{MATRICES} matrices", shown)


def test_the_command_says_which_blocks_tensorrt_rtx_does_not_take(
    backbone_folder: Folders, tmp_path: Path
) -> None:
    """Of Q4_1, which has minimums; the token embedding is no matrix product's."""
    types = {"token_embd": "Q8_0", "ffn_up": "Q4_1", "attn_q": "F16", "blk": "Q4_0"}
    path = write_gguf(tmp_path / "model.gguf", backbone_folder("llama"), types=types)
    head = make_artifact(tmp_path / "head", backbone_folder("llama"))
    said = exported(tmp_path / "rtx", path, head, "tensorrt-rtx")
    assert f"carried over: {4 * 5} matrices" in said
    assert "rounded anew: 4 matrices" in said
    folder = exported(tmp_path / "folder", backbone_folder("llama"), head, "tensorrt-rtx")
    assert "carried over" not in folder
    assert "rounded anew" not in folder
