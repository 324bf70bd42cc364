"""Write a head in llm-siren's artifact format: siren_config.json and siren.safetensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.selected import LayerSelection, MeanPooling
from siren_runtime.bundle.heads import Activation, LabelDecision
from siren_runtime.generation.manifest import TrainedOn


def write_head(
    folder: Path,
    *,
    model_id: str,
    model_revision: str | None,
    pooling: MeanPooling,
    layers: Sequence[LayerSelection],
    head: Sequence[Dense],
    max_length: int,
    threshold: float,
    class_names: Sequence[str] = (),
    activation: Activation = "softmax",
    openai: Mapping[str, Sequence[str]] | None = None,
    decisions: Sequence[LabelDecision] = (),
    half: bool = False,
    trained_on: TrainedOn | None = None,
) -> None:
    """Write the two files into `folder`. Each is replaced whole or not at all.

    Args:
        folder: made if it is not there.
        layers: what the head reads, by ascending layer.
        head: its dense layers, ReLU between them.
        max_length: token limit of a text, special tokens included.
        threshold: a text is harmful from this score.
        class_names: by index; empty leaves them unnamed.
        activation: "softmax" of classes, "sigmoid" of labels.
        openai: which labels cover each of OpenAI's 13 keys.
        decisions: how the head decides on each of its labels.
        half: store the dense layers in float16, which llm-siren and siren-edge widen when they
            load them.
        trained_on: the generator whose features they were; None where a backbone's.

    Raises:
        InputError: a file cannot be written.
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
        activation=activation,
        openai=openai,
        decisions=decisions,
        half=half,
        trained_on=trained_on,
    )
