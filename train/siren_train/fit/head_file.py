"""Write a head in llm-siren's artifact format: siren_config.json and siren.safetensors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from siren_export.sources.artifact import CONFIG_FILE, WEIGHTS_FILE, LayerSelection, Linear
from siren_runtime.bundle.heads import Pooling
from siren_train.store.files import write_atomically


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
    """Write the two files into `folder`; each is replaced whole or left alone.

    Args:
        half: store float16, which llm-siren and siren-edge widen when they load.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
    dtype = np.float16 if half else np.float32
    tensors = {
        f"network.{2 * slot}.{part}": np.ascontiguousarray(value, dtype=dtype)
        for slot, layer in enumerate(head)
        for part, value in (("weight", layer.weight), ("bias", layer.bias))
    }
    write_atomically(folder / WEIGHTS_FILE, save(tensors))
    write_atomically(folder / CONFIG_FILE, (json.dumps(config) + "\n").encode())
