"""Tiny guards with exits, as tests of whole texts and of streams have them."""

from pathlib import Path
from typing import Any

import msgspec

from models import make_artifact
from siren_export.export import export_bundle
from siren_export.heads.base import Artifact
from siren_export.heads.exits import exit_folder, with_exits
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.bundle.manifest import MANIFEST_FILE, encode
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.types import Precision

BOUNDS = (0.3, 0.7), (0.35, 0.65)  # of the exits: each decides on some texts, not on all


def artifact_with_exits(folder: Path, backbone: Path) -> Artifact:
    """A head that reads four blocks, with exits behind one and three."""
    head = make_artifact(folder, backbone, layers=[0, 2, 3])
    make_artifact(exit_folder(head, 1), backbone, layers=[0], seed=1)
    make_artifact(exit_folder(head, 3), backbone, layers=[0, 1, 2], seed=2)
    return with_exits(load_artifact(head), [1, 3])


def export_with_exits(folder: Path, backbone: Path, precision: Precision = "fp32") -> Path:
    """A bundle with a head and exits, which decide."""
    artifact = artifact_with_exits(folder / "head", backbone)
    export_bundle(artifact, load_checkpoint(backbone), folder / "b", precision=precision)
    set_bounds(folder / "b")
    return folder / "b"


def set_bounds(bundle: Path, bounds: Any = BOUNDS) -> None:
    """Let the exits of a bundle decide."""
    manifest = load_bundle(bundle).manifest
    cascade = manifest.cascade
    assert cascade is not None
    exits = [
        msgspec.structs.replace(one, low=low, high=high)
        for one, (low, high) in zip(cascade.exits, bounds, strict=True)
    ]
    cascade = msgspec.structs.replace(cascade, exits=exits, cutoffs=manifest.cutoffs)
    data = encode(msgspec.structs.replace(manifest, cascade=cascade))
    (bundle / MANIFEST_FILE).write_bytes(data)
