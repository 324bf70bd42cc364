"""The extractor: a bundle whose head reads every channel of every layer.

Its layer weights are 1, so its features are the pooled neurons as they are, and the weights of its
dense layer, or of trajectories those of its one logit, are zeros. It is an ordinary bundle
otherwise. So what a head is trained on comes from the engine that will serve the head, in the
precision that will serve it.
"""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np

from siren_export.export import export_bundle
from siren_export.families.registry import backbone_of
from siren_export.heads.base import Artifact
from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.registry import load_artifact
from siren_export.heads.selected import LayerSelection, MeanPooling
from siren_export.heads.trajectory import TrajectoryHead
from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.bundle.heads import Decision, Pooling
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.errors import BundleError

from .store import StoreManifest


def extractor_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return how many layers an extractor of `checkpoint` pools, and how many channels of each.

    Raises:
        CheckpointError: the backbone's kind is not supported.
    """
    backbone = backbone_of(checkpoint)
    return backbone.blocks, backbone.hidden_size


def build_extractor(
    checkpoint: Checkpoint,
    output: Path,
    store: StoreManifest,
    pooling: Pooling,
) -> str:
    """Export the extractor of `checkpoint` to `output`.

    Args:
        store: says what the bundle calls its backbone, its token limit and its precision.

    Returns:
        The SHA-256 that names the engine: of all its files' own, in hexadecimal. The same release
        makes the same files of a backbone, but for weights that are fitted, in int8 and int4: other
        processors may round the products otherwise by which they are.

    Raises:
        CheckpointError, BundleError: as siren_export.export.export_bundle.
    """
    if pooling not in get_args(MeanPooling):
        artifact = _of_trajectories(store)
        made = export_bundle(artifact, checkpoint, output, precision=store.precision, stream=False)
        return _digest(made)
    every = [LayerSelection(layer, np.arange(store.channels), 1.0) for layer in range(store.layers)]
    n_features = store.layers * store.channels
    nothing = Dense(np.zeros((2, n_features), np.float32), np.zeros(2, np.float32))
    with TemporaryDirectory() as folder:
        write_mlp_artifact(
            Path(folder),
            model_id=store.model_id,
            model_revision=store.model_revision,
            pooling=pooling,
            layers=every,
            dense=[nothing],
            max_length=store.max_length,
            threshold=0.5,
        )
        artifact = load_artifact(folder)
        made = export_bundle(artifact, checkpoint, output, precision=store.precision, spans=False)
        return _digest(made)


def is_engine(extractor: Path, engine: str, store: StoreManifest) -> bool:
    """Whether the extractor is there that `build_extractor` named so for a store; the files that
    its guard.json lists are read whole.
    """
    try:
        manifest = load_bundle(extractor, verify="full").manifest
    except BundleError:
        return False  # it is damaged, or none is there
    return _digest(manifest) == engine and manifest.text.max_length == store.max_length


def _digest(manifest: Manifest) -> str:
    told = [f"{name} {manifest.files[name].sha256}" for name in sorted(manifest.files)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _of_trajectories(store: StoreManifest) -> Artifact:
    """A head that reads the last token's state behind every block."""
    nothing = np.zeros(store.layers * store.channels, np.float32)
    return Artifact(
        source=f"the extractor of {store.model_id}",
        path=Path(),
        model_id=store.model_id,
        model_revision=store.model_revision,
        max_length=store.max_length,
        decision=Decision(0.5),
        head=TrajectoryHead(tuple(range(store.layers)), nothing, 0.0),
        task="trajectory",
    )
