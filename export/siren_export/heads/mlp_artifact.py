"""The files of an MLP head: siren_config.json and siren.safetensors, read, checked and written.

The format and its meaning are those of llm-siren 0.2.0: its content artifacts, with either
pooling, any subset of layers and any number of hidden layers.

A head of labels has `task: "categories"`, which llm-siren refuses, and beside the keys of a content
artifact, with `mlp.class_names` and `mlp.num_classes` required,

    inference.labels       {"hate": {"threshold": 0.4, "temperature": 1.2}, …}; optional
    openai_categories      {"hate": ["hate"], "illicit": [], …}: OpenAI's 13 keys; optional

A forecast head has `task: "forecast"` and `mlp.num_classes` 1. Without hidden layers it is linear.
"""

from collections.abc import Mapping, Sequence, Set
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from safetensors.numpy import save

from siren_export.sources.local_file import read_json
from siren_export.sources.safetensors_file import SafetensorsFile
from siren_runtime.bundle.heads import Activation, LabelDecision, check_openai
from siren_runtime.errors import ArtifactError
from siren_runtime.generation.manifest import TrainedOn

from .base import CONFIG_FILE, WEIGHTS_FILE, write_artifact
from .mlp import Dense, MlpHead
from .neurons import (
    INT32_MAX,
    SirenModule,
    neurons_key,
    read_float32,
    read_selection,
    shown_names,
)
from .selected import LayerSelection

TASKS: dict[Activation, str] = {
    "softmax": "content",
    "sigmoid": "categories",
    "logistic": "forecast",
}
_Size = Annotated[int, Meta(ge=1, le=INT32_MAX)]
_DropoutRate = Annotated[float, Meta(ge=0.0, lt=1.0)]


class _Mlp(msgspec.Struct):
    input_dim: _Size
    layer_dims: list[_Size]
    dropout_rates: list[_DropoutRate]
    num_classes: _Size | None = None
    class_names: list[str] = []


class _Config(msgspec.Struct):
    """What of siren_config.json is used of the head; other keys (training notes) are left alone."""

    siren_module: SirenModule
    mlp: _Mlp
    openai_categories: dict[str, list[str]] = {}


def read_mlp_head(folder: Path, activation: Activation = "softmax") -> MlpHead:
    """Read the head of an artifact from its folder.

    Args:
        activation: "softmax" of a content artifact's classes, "sigmoid" of labels, "logistic" of a
            forecast.

    Raises:
        ArtifactError: it is damaged or inconsistent.
    """
    path = folder / CONFIG_FILE
    config = read_json(path, _Config, ArtifactError)
    module, mlp = config.siren_module, config.mlp
    pooling, layers = read_selection(module, mlp.input_dim, "mlp.input_dim", path)
    names = _class_names(mlp, activation, path)
    dense = _read_dense(folder / WEIGHTS_FILE, mlp, path)
    openai = _openai(config, names, activation, path)
    return MlpHead(pooling, layers, dense, names, activation, openai)


def write_mlp_artifact(
    folder: Path,
    *,
    model_id: str,
    model_revision: str | None = None,
    pooling: str,
    layers: Sequence[LayerSelection],
    dense: Sequence[Dense],
    max_length: int,
    threshold: float,
    dropout_rates: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
    activation: Activation = "softmax",
    openai: Mapping[str, Sequence[str]] | None = None,
    decisions: Sequence[LabelDecision] = (),
    unweighted: Set[int] = frozenset(),
    half: bool = False,
    trained_on: TrainedOn | None = None,
) -> None:
    """Write an artifact into `folder`; what lies there of other weights goes first.

    Args:
        model_id: the backbone's folder or hub id.
        layers: written in this order.
        dense: with ReLU in between.
        dropout_rates: one a hidden layer, in training. Scoring drops nothing; a rate of 0, the
            default, takes no place in the tensors' names.
        activation: "softmax" makes a content artifact, "sigmoid" one of labels, "logistic" a
            forecast.
        openai: which labels cover each of OpenAI's 13 keys.
        decisions: how the head decides on each of its labels.
        unweighted: blocks whose weight is left out, which then is 1.
        half: store float16, which llm-siren and siren-edge widen when they load.
        trained_on: the generator whose features the head was trained on, if it was.

    Raises:
        InputError: a file cannot be written.
    """
    rates = [0.0] * (len(dense) - 1) if dropout_rates is None else list(dropout_rates)
    config: dict[str, Any] = {
        "task": TASKS[activation],
        "base_model": {"model_id": model_id, "revision": model_revision},
        "siren_module": {
            "pooling_type": pooling,
            "selected_layers": [layer.layer for layer in layers],
            "layer_weights": {
                str(layer.layer): layer.weight for layer in layers if layer.layer not in unweighted
            },
            "selected_neurons_dict": {
                neurons_key(layer.layer, pooling): layer.channels.tolist() for layer in layers
            },
        },
        "mlp": {
            "input_dim": dense[0].weight.shape[1],
            "layer_dims": [len(layer.bias) for layer in dense[:-1]],
            "dropout_rates": rates,
            "num_classes": len(dense[-1].bias),
            "class_names": list(class_names),
        },
        "inference": {"max_length": max_length, "default_threshold": threshold},
    }
    if decisions:
        config["inference"]["labels"] = {
            label.name: {"threshold": label.threshold, "temperature": label.temperature}
            for label in decisions
        }
    if openai:
        config["openai_categories"] = {key: list(names) for key, names in openai.items()}
    if trained_on is not None:
        config["trained_on"] = msgspec.to_builtins(trained_on)
    dtype = np.float16 if half else np.float32
    tensors = {
        f"network.{slot}.{part}": np.ascontiguousarray(value, dtype=dtype)
        for slot, layer in zip(_dense_slots(rates), dense, strict=True)
        for part, value in (("weight", layer.weight), ("bias", layer.bias))
    }
    write_artifact(folder, save(tensors), config)


def _class_names(mlp: _Mlp, activation: Activation, path: Path) -> tuple[str, ...]:
    names, classes = mlp.class_names, _classes(mlp)
    if activation == "softmax" and classes < 2:
        raise ArtifactError(f"{path}: $.mlp.num_classes is {classes}; expected 2 or more")
    if activation == "sigmoid" and (mlp.num_classes is None or not names):
        raise ArtifactError(
            f"{path}: a head of labels needs mlp.num_classes and mlp.class_names, their names"
        )
    if activation == "logistic" and (classes != 1 or names):
        raise ArtifactError(
            f"{path}: a forecast head has one logit without a name: expected mlp.num_classes 1, "
            f"found {classes}, and no mlp.class_names, found {names}"
        )
    if names and (len(set(names)) != classes or len(names) != classes):
        raise ArtifactError(
            f"{path}: mlp.class_names is {names}; expected {classes} different names, one "
            "for each class"
        )
    for name in names if activation == "sigmoid" else ():
        if not name.strip() or name != name.strip() or "+" in name or not name.isprintable():
            raise ArtifactError(
                f"{path}: mlp.class_names has {name!r}; a label is printable, without blanks "
                "around it and without +, which joins labels"
            )
    return tuple(names)


def _classes(mlp: _Mlp) -> int:
    return 2 if mlp.num_classes is None else mlp.num_classes


def _openai(
    config: _Config, names: Sequence[str], activation: Activation, path: Path
) -> dict[str, list[str]]:
    if config.openai_categories and activation != "sigmoid":
        raise ArtifactError(
            f"{path}: openai_categories is for heads of labels; the task of this one is "
            f"{TASKS[activation]!r}"
        )
    check_openai(config.openai_categories, names, f"{path}: openai_categories", ArtifactError)
    return config.openai_categories


def _read_dense(path: Path, mlp: _Mlp, config_path: Path) -> tuple[Dense, ...]:
    if len(mlp.layer_dims) != len(mlp.dropout_rates):
        raise ArtifactError(
            f"{config_path}: mlp.layer_dims has {len(mlp.layer_dims)} entries and "
            f"mlp.dropout_rates {len(mlp.dropout_rates)}; each hidden layer needs one of both"
        )
    slots = _dense_slots(mlp.dropout_rates)
    dims = [mlp.input_dim, *mlp.layer_dims, _classes(mlp)]
    file = SafetensorsFile(path, ArtifactError)
    found = set(file.tensors)
    expected = {f"network.{slot}.{part}" for slot in slots for part in ("weight", "bias")}
    if found != expected:
        raise ArtifactError(
            f"{path}: its tensors do not match mlp.layer_dims and mlp.dropout_rates of "
            f"{config_path.name}: missing {shown_names(expected - found)}, unexpected "
            f"{shown_names(found - expected)}; a hidden layer takes 3 places in `network` where "
            "its dropout rate is above 0, else 2"
        )
    return tuple(
        Dense(
            weight=read_float32(file, f"network.{slot}.weight", (width, dims[n])),
            bias=read_float32(file, f"network.{slot}.bias", (width,)),
        )
        for n, (slot, width) in enumerate(zip(slots, dims[1:], strict=True))
    )


def _dense_slots(dropout_rates: Sequence[float]) -> list[int]:
    """Where dense layers stand in `network`: ReLU and, for a rate above 0, Dropout are between."""
    return list(accumulate((3 if rate > 0 else 2 for rate in dropout_rates), initial=0))
