"""The extractor bundle: a backbone whose features are every channel of every layer.

It is an ordinary bundle with an empty head, so what a head is trained on comes from the engine
that will serve it, in the precision that will serve it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from siren_export.export import export_bundle
from siren_export.families.registry import parse_config
from siren_export.heads.mlp import Dense, LayerSelection
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.bundle.heads import Pooling
from siren_runtime.bundle.types import Precision
from siren_train.fit.head_file import write_head


def extractor_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the layers and the channels of each that an extractor of `checkpoint` gives.

    Raises:
        CheckpointError: the backbone's kind is not supported.
    """
    config = parse_config(checkpoint.config, checkpoint.source)
    return config.blocks, config.hidden_size


def build_extractor(
    checkpoint: Checkpoint,
    output: Path,
    *,
    model_id: str,
    model_revision: str | None,
    pooling: Pooling,
    max_length: int,
    precision: Precision = "fp32",
) -> None:
    """Export the extractor bundle of `checkpoint` to `output`; a finished one is left alone.

    Raises:
        CheckpointError, BundleError: as siren_export.export_bundle.
    """
    if output.exists():
        return
    layers, channels = extractor_shape(checkpoint)
    every = [LayerSelection(layer, np.arange(channels), 1.0) for layer in range(layers)]
    nothing = Dense(np.zeros((2, layers * channels), np.float32), np.zeros(2, np.float32))
    with TemporaryDirectory() as folder:
        write_head(
            Path(folder),
            model_id=model_id,
            model_revision=model_revision,
            pooling=pooling,
            layers=every,
            head=[nothing],
            max_length=max_length,
            threshold=0.5,
        )
        export_bundle(load_artifact(folder), checkpoint, output, precision=precision)
