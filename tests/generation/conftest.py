"""Tiny generators, built once a session, and one that is grafted."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from backbones import BackboneSpec
from generators import make_generator, need_genai
from models import make_artifact, make_backbone
from siren_export.export import export_bundle
from siren_export.graft.graft import graft
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from siren_runtime.bundle.reader import sha256
from siren_runtime.generation.generator import GuardedGenerator

# Attention of onnxruntime-genai takes heads of 16, 32, …; soft caps are left out of its graphs.
_WIDE = {"head_dim": 32, "sliding_window": 64}
SPECS = {
    "llama": BackboneSpec("llama"),
    "qwen2": BackboneSpec("qwen2"),
    "qwen3": BackboneSpec("qwen3", {"head_dim": 32}),
    "gemma2": BackboneSpec("gemma2", {**_WIDE, "attn_logit_softcapping": None}),
    "gemma3": BackboneSpec("gemma3_text", _WIDE),
    "mistral": BackboneSpec("mistral", {"head_dim": 32, "sliding_window": None}),
    "granite": BackboneSpec("granite"),
    "phi3": BackboneSpec("phi3", {"sliding_window": None, "eos_token_id": 2, "bos_token_id": 1}),
    "phi": BackboneSpec("phi", {"partial_rotary_factor": 1.0, "layer_norm_eps": 1e-5}),
}


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of the backbone of that name in SPECS."""

    @functools.cache
    def make(name: str) -> Path:
        need_genai()
        return make_backbone(tmp_path_factory.mktemp(name), SPECS[name])

    return make


@pytest.fixture(scope="session")
def generator(
    tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], Path]
) -> Callable[..., Path]:
    """Return a generator's folder, by its backbone, precision and device; do not change it."""

    @functools.cache
    def make(name: str, precision: str = "fp32", device: str = "cpu") -> Path:
        folder = tmp_path_factory.mktemp(f"{name}-{precision}-{device}") / "genai"
        return make_generator(backbone(name), folder, precision, device)

    return make


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], Path]) -> Path:
    """A head for the llama."""
    return make_artifact(tmp_path_factory.mktemp("head"), backbone("llama"))


@pytest.fixture(scope="session")
def grafted(
    tmp_path_factory: pytest.TempPathFactory, generator: Callable[..., Path], head: Path
) -> Path:
    """The llama in float32 with its head."""
    output = tmp_path_factory.mktemp("grafted") / "folder"
    graft(generator("llama"), load_artifact(head), output, foreign=True)
    return output


@pytest.fixture(scope="session")
def guarded(grafted: Path) -> GuardedGenerator:
    return GuardedGenerator.load(grafted, threads=1)


@pytest.fixture(scope="session")
def bundle(
    head: Path, backbone: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same head on the same backbone, as a guard that streams."""
    output = tmp_path_factory.mktemp("guard") / "bundle"
    export_bundle(load_artifact(head), load_checkpoint(str(backbone("llama"))), output)
    return output


@pytest.fixture(scope="session")
def guard(bundle: Path) -> Guard:
    return Guard.load(bundle, backend="cpu", threads=1)


@pytest.fixture
def copied(grafted: Path, tmp_path: Path) -> Path:
    """The grafted folder, free to be changed."""
    return Path(shutil.copytree(grafted, tmp_path / "copy"))


@pytest.fixture
def rewritten(copied: Path) -> Callable[[str, str], Path]:
    """Write a text file of `copied`, whose guard.json then has it so."""

    def rewrite(name: str, text: str) -> Path:
        (copied / name).write_text(text)
        manifest = json.loads((copied / "guard.json").read_text())
        size, digest = (copied / name).stat().st_size, sha256(copied / name)
        manifest["files"][name] = {"size": size, "sha256": digest}
        (copied / "guard.json").write_text(json.dumps(manifest))
        return copied

    return rewrite


@pytest.fixture
def poisoned(copied: Path) -> Callable[..., Path]:
    """Put NaN in a row of a weight of `copied`, whose guard.json then has it so."""

    def poison(weight: str, row: int) -> Path:
        tensor = ir.load(copied / "model.onnx").graph.initializers[weight].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        file = copied / tensor.location
        values = np.memmap(file, np.float32, "r+", tensor.offset or 0, tuple(tensor.shape.numpy()))
        values[row] = np.nan
        values.flush()
        manifest = json.loads((copied / "guard.json").read_text())
        manifest["files"][file.name]["sha256"] = sha256(file)
        (copied / "guard.json").write_text(json.dumps(manifest))
        return copied

    return poison
