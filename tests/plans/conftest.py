"""TensorRT-RTX, which compiles without a GPU, and bundles of tiny models to compile."""

import functools
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from models import make_artifact
from reference import Pooling
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.backends.tensorrt.library import Library, load_library
from siren_runtime.bundle.reader import Bundle, load_bundle
from tiny_bundle import make_bundle


@pytest.fixture(scope="session")
def rtx() -> Library:
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed; its wheels are for Linux and Windows on x86-64")
    return load_library("tensorrt-rtx")


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    """Return a bag of tokens, which compiles in a second."""
    return load_bundle(make_bundle(tmp_path / "tiny", scale=2.0))


@pytest.fixture(scope="session")
def head(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Callable[[str, Pooling], Path]:
    """Return a function: backbone name, pooling -> a head's folder; do not change it."""

    @functools.cache
    def make(name: str, pooling: Pooling) -> Path:
        folder = tmp_path_factory.mktemp(name) / "head"
        return make_artifact(folder, backbone_folder(name), pooling=pooling)

    return make


@pytest.fixture
def export(
    tmp_path: Path, backbone_folder: Callable[[str], Path], head: Callable[[str, Pooling], Path]
) -> Callable[..., Bundle]:
    """Return a function: backbone name, pooling and options of export_bundle -> Bundle.

    A bundle is gone when the next one is made.
    """

    def run(name: str, *, pooling: Pooling = "residual_mean", **options: Any) -> Bundle:
        folder = tmp_path / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        artifact, checkpoint = load_artifact(head(name, pooling)), backbone_folder(name)
        export_bundle(artifact, load_checkpoint(checkpoint), folder, **options)
        return load_bundle(folder)

    return run
