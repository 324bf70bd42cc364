"""Write a head in llm-siren's artifact format: siren_config.json and siren.safetensors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from siren_export.sources.artifact import CONFIG_FILE, WEIGHTS_FILE, LayerSelection, Linear
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.heads import Pooling
from siren_runtime.errors import InputError


def write_head(
    folder: Path,
    *,
    model_id: str,
    model_revision: str | None,
    pooling: Pooling,
    layers: Sequence[LayerSelection],
    head: Sequence[Linear],
    max_length: int,
    threshold: float,
    class_names: Sequence[str] = (),
    half: bool = False,
) -> None:
    """Write the two files into `folder`. Each is replaced whole or not at all.

    Args:
        folder: made if it is not there.
        layers: what the head reads, by ascending layer.
        head: its dense layers, ReLU between them.
        max_length: token limit of a text, special tokens included.
        threshold: a text is harmful from this score.
        class_names: by index; empty leaves them unnamed.
        half: store the dense layers in float16, which llm-siren and siren-edge widen when they
            load them.

    Raises:
        InputError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS_FILE, save(_tensors(head, half)), InputError)
    config: dict[str, Any] = {
        "task": "content",
        "base_model": {"model_id": model_id, "revision": model_revision},
        "siren_module": {
            "pooling_type": pooling,
            "selected_layers": [layer.layer for layer in layers],
            "layer_weights": {str(layer.layer): layer.weight for layer in layers},
            "selected_neurons_dict": {
                f"layer{layer.layer}_{pooling}": layer.channels.tolist() for layer in layers
            },
        },
        "mlp": {
            "input_dim": head[0].weight.shape[1],
            "layer_dims": [len(layer.bias) for layer in head[:-1]],
            # Scoring drops nothing, and a rate of 0 takes no place in the tensors' names.
            "dropout_rates": [0.0] * (len(head) - 1),
            "num_classes": len(head[-1].bias),
            "class_names": list(class_names),
        },
        "inference": {"max_length": max_length, "default_threshold": threshold},
    }
    write_whole(folder / CONFIG_FILE, (json.dumps(config) + "\n").encode(), InputError)


def _tensors(head: Sequence[Linear], half: bool) -> dict[str, NDArray[np.floating]]:
    """Return the tensors by llm-siren's names: of each dense layer, and none of each ReLU."""
    dtype = np.float16 if half else np.float32
    return {
        f"network.{2 * slot}.{part}": np.ascontiguousarray(value, dtype=dtype)
        for slot, layer in enumerate(head)
        for part, value in (("weight", layer.weight), ("bias", layer.bias))
    }
