"""TensorRT-RTX, which compiles without a GPU, and bundles of tiny models to compile."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from models import make_artifact
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


@pytest.fixture
def export(tmp_path: Path, backbone_folder: Callable[[str], Path]) -> Callable[..., Bundle]:
    """Return a function: backbone name, options of make_artifact and export_bundle -> Bundle."""

    def run(name: str, *, pooling: str = "residual_mean", **options: object) -> Bundle:
        head = tmp_path / f"head-{name}-{pooling}"
        if not head.exists():
            make_artifact(head, backbone_folder(name), pooling=pooling)
        folder = tmp_path / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        export_bundle(
            load_artifact(head), load_checkpoint(backbone_folder(name)), folder, **options
        )
        return load_bundle(folder)

    return run
