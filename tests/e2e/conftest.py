"""The real path, from artifact and checkpoint to a bundle on disk, made once a case."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models import make_artifact
from siren_export.artifact import load_artifact
from siren_export.checkpoint import load_checkpoint
from siren_export.export import export_bundle


@dataclass(frozen=True)
class Exported:
    """A head artifact and the bundle made of it."""

    artifact: Path
    bundle: Path


@pytest.fixture(scope="session")
def export(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Callable[..., Exported]:
    """Return a function: backbone name, precision and options of make_artifact -> Exported.

    Options must be hashable.
    """

    @functools.cache
    def artifact_folder(name: str, **options: Any) -> Path:
        return make_artifact(tmp_path_factory.mktemp("artifact"), backbone_folder(name), **options)

    @functools.cache
    def run(name: str, precision: str = "fp32", **options: Any) -> Exported:
        artifact = artifact_folder(name, **options)
        bundle = tmp_path_factory.mktemp("exported") / "bundle"
        export_bundle(
            load_artifact(artifact),
            load_checkpoint(backbone_folder(name)),
            bundle,
            precision=precision,
        )
        return Exported(artifact, bundle)

    return run
