"""The real path, from artifact and checkpoint to a bundle on disk, made once a case."""

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guards import load_guard
from models import make_artifact
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard
from streaming import LIMIT
from trajectories import TEMPLATES, make_chat_backbone, make_trajectory_head


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


@pytest.fixture(scope="module")
def guards(export: Callable[..., Exported]) -> Iterator[Callable[..., tuple[Guard, Guard]]]:
    """Return a function: backbone name -> a guard that scores and one that streams."""
    opened: dict[Any, tuple[Guard, Guard]] = {}

    def run(name: str, precision: str = "fp32", **options: Any) -> tuple[Guard, Guard]:
        key = name, precision, *options.items()
        if key not in opened:
            bundle = export(name, precision, **{"max_length": LIMIT, **options}).bundle
            opened[key] = load_guard(bundle, threads=1), load_guard(bundle, threads=1)
        return opened[key]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield run


@pytest.fixture(scope="session")
def trajectory_bundle(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> Callable[..., tuple[Path, Path]]:
    """A function: family, template, options -> the head's folder and its bundle's."""
    cases: dict[Any, tuple[Path, Path]] = {}

    def make(
        name: str = "qwen3",
        template: str = "chatml",
        *,
        blocks: int = 3,
        max_length: int = 48,
        precision: Any = "fp32",
    ) -> tuple[Path, Path]:
        key = name, template, blocks, max_length, precision
        if key not in cases:
            folder = tmp_path_factory.mktemp("trajectory")
            chat = make_chat_backbone(folder / "chat", backbone_folder(name), TEMPLATES[template])
            head = make_trajectory_head(folder / "head", chat, blocks=blocks, max_length=max_length)
            export_bundle(
                load_artifact(head), load_checkpoint(chat), folder / "bundle", precision=precision
            )
            cases[key] = head, folder / "bundle"
        return cases[key]

    return make
