"""The files of a SIREN head that nothing is wrong with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Config = dict[str, Any]
Tensors = dict[str, Any]

# Layers 0 and 3, five channels, one hidden layer of 4 with dropout.
CONFIG: Config = {
    "base_model": {"model_id": "org/backbone", "revision": "0123abc"},
    "siren_module": {
        "pooling_type": "residual_mean",
        "selected_layers": [3, 0],
        "layer_weights": {"3": 0.25},
        "selected_neurons_dict": {
            "layer0_residual_mean": [7, 2],
            "layer3_residual_mean": [1, 0, 5],
        },
    },
    "mlp": {"input_dim": 5, "layer_dims": [4], "dropout_rates": [0.2]},
    "inference": {"max_length": 512, "default_threshold": 0.5},
    "training": {"note": "keys that scoring does not use are left alone"},
}
TENSORS: Tensors = {
    "network.0.weight": np.arange(20, dtype=np.float32).reshape(4, 5) / 7,
    "network.0.bias": np.arange(4, dtype=np.float32),
    "network.3.weight": np.ones((2, 4), np.float32),
    "network.3.bias": np.array([0.5, -0.5], np.float32),
}
CONFIG_FILE = "siren_config.json"
WEIGHTS_FILE = "siren.safetensors"


def write(folder: Path, config: Config, tensors: Tensors) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder
