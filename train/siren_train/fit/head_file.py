"""Write a head in llm-siren's artifact format: siren_config.json and siren.safetensors."""

from collections.abc import Sequence
from pathlib import Path

from siren_export.heads.mlp import Dense, LayerSelection
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_runtime.bundle.heads import Pooling


def write_head(
    folder: Path,
    *,
    model_id: str,
    model_revision: str | None,
    pooling: Pooling,
    layers: Sequence[LayerSelection],
    head: Sequence[Dense],
    max_length: int,
    threshold: float,
    class_names: Sequence[str] = (),
    half: bool = False,
) -> None:
    """Write the two files into `folder`; each is replaced whole or left alone.

    Args:
        half: store float16, which llm-siren and siren-edge widen when they load.
    """
    write_mlp_artifact(
        folder,
        model_id=model_id,
        model_revision=model_revision,
        pooling=pooling,
        layers=layers,
        dense=head,
        max_length=max_length,
        threshold=threshold,
        class_names=class_names,
        half=half,
    )
