"""The files of an MLP head: siren_config.json and siren.safetensors, read, checked and written.

The format and its meaning are those of llm-siren 0.2.0: its content artifacts, with either
pooling, any subset of layers and any number of hidden layers.

A head of labels has `task: "categories"`, which llm-siren refuses, and beside the keys of a content
artifact, with `mlp.class_names` and `mlp.num_classes` required,

    inference.labels       {"hate": {"threshold": 0.4, "temperature": 1.2}, …}; optional
    openai_categories      {"hate": ["hate"], "illicit": [], …}: OpenAI's 13 keys; optional
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from safetensors.numpy import save

from siren_export.sources.finite import all_finite
from siren_export.sources.local_file import read_json
from siren_export.sources.safetensors_file import SafetensorsFile
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.heads import Activation, LabelDecision, check_openai
from siren_runtime.errors import ArtifactError, InputError

from .base import CONFIG_FILE, WEIGHTS_FILE
from .mlp import Dense, LayerSelection, MlpHead, MlpPooling

TASKS: dict[Activation, str] = {"softmax": "content", "sigmoid": "categories"}
_BLOCK_INDEX = re.compile("0|[1-9][0-9]{0,8}")
_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_Index = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
_Size = Annotated[int, Meta(ge=1, le=_INT32_MAX)]
_DropoutRate = Annotated[float, Meta(ge=0.0, lt=1.0)]


class _SirenModule(msgspec.Struct):
    pooling_type: str
    selected_layers: Annotated[list[_Index], Meta(min_length=1)]
    selected_neurons_dict: dict[str, list[_Index]]
    layer_weights: dict[str, float] = {}


class _Mlp(msgspec.Struct):
    input_dim: _Size
    layer_dims: list[_Size]
    dropout_rates: list[_DropoutRate]
    num_classes: _Size | None = None
    class_names: list[str] = []


class _Config(msgspec.Struct):
    """What of siren_config.json is used of the head; other keys (training notes) are left alone."""

    siren_module: _SirenModule
    mlp: _Mlp
    openai_categories: dict[str, list[str]] = {}


def read_mlp_head(folder: Path, activation: Activation = "softmax") -> MlpHead:
    """Read the head of an artifact from its folder.

    Args:
        activation: "softmax" of a content artifact's classes, "sigmoid" of labels.

    Raises:
        ArtifactError: it is damaged or inconsistent.
    """
    path = folder / CONFIG_FILE
    config = read_json(path, _Config, ArtifactError)
    module, mlp = config.siren_module, config.mlp
    pooling = _check_pooling(module.pooling_type, path)
    layers = _select_layers(module, pooling, path)
    features = sum(selection.channels.size for selection in layers)
    if features != mlp.input_dim:
        raise ArtifactError(
            f"{path}: mlp.input_dim is {mlp.input_dim}, but selected_neurons_dict selects "
            f"{features} channels over {len(layers)} layers; they must be equal"
        )
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
) -> None:
    """Write an artifact into `folder`; each of its two files is replaced whole or left.

    Args:
        model_id: the backbone's folder or hub id.
        layers: written in this order.
        dense: with ReLU in between.
        dropout_rates: one a hidden layer, in training. Scoring drops nothing; a rate of 0, the
            default, takes no place in the tensors' names.
        activation: "softmax" makes a content artifact, "sigmoid" one of labels.
        openai: which labels cover each of OpenAI's 13 keys.
        decisions: how the head decides on each of its labels.
        unweighted: blocks whose weight is left out, which then is 1.
        half: store float16, which llm-siren and siren-edge widen when they load.

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
                _key(layer.layer, pooling): layer.channels.tolist() for layer in layers
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
    dtype = np.float16 if half else np.float32
    tensors = {
        f"network.{slot}.{part}": np.ascontiguousarray(value, dtype=dtype)
        for slot, layer in zip(_dense_slots(rates), dense, strict=True)
        for part, value in (("weight", layer.weight), ("bias", layer.bias))
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS_FILE, save(tensors), InputError)
    write_whole(folder / CONFIG_FILE, (json.dumps(config) + "\n").encode(), InputError)


def _check_pooling(found: str, path: Path) -> MlpPooling:
    if found not in get_args(MlpPooling):
        raise ArtifactError(
            f"{path}: siren_module.pooling_type is {found!r}; expected one of "
            f"{', '.join(get_args(MlpPooling))}"
        )
    return cast("MlpPooling", found)


def _class_names(mlp: _Mlp, activation: Activation, path: Path) -> tuple[str, ...]:
    names, classes = mlp.class_names, _classes(mlp)
    if activation == "softmax" and classes < 2:
        raise ArtifactError(f"{path}: $.mlp.num_classes is {classes}; expected 2 or more")
    if activation == "sigmoid" and (mlp.num_classes is None or not names):
        raise ArtifactError(
            f"{path}: a head of labels needs mlp.num_classes and mlp.class_names, their names"
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
    if config.openai_categories and activation == "softmax":
        raise ArtifactError(
            f"{path}: openai_categories is for heads of labels; the task of this one is "
            f"{TASKS[activation]!r}"
        )
    check_openai(config.openai_categories, names, f"{path}: openai_categories", ArtifactError)
    return config.openai_categories


def _key(layer: int, pooling: str) -> str:
    return f"layer{layer}_{pooling}"


def _select_layers(
    module: _SirenModule, pooling: MlpPooling, path: Path
) -> tuple[LayerSelection, ...]:
    layers = sorted(module.selected_layers)
    for layer, following in pairwise(layers):
        if layer == following:
            raise ArtifactError(f"{path}: siren_module.selected_layers names layer {layer} twice")
    found, expected = set(module.selected_neurons_dict), {_key(n, pooling) for n in layers}
    if found != expected:
        raise ArtifactError(
            f"{path}: siren_module.selected_neurons_dict does not match selected_layers: missing "
            f"{_names(expected - found)}, unexpected {_names(found - expected)}"
        )
    weights = _layer_weights(module, path)
    return tuple(
        LayerSelection(
            layer, _channels(module, _key(layer, pooling), path), weights.get(layer, 1.0)
        )
        for layer in layers
    )


def _channels(module: _SirenModule, key: str, path: Path) -> NDArray[np.int64]:
    channels = np.array(module.selected_neurons_dict[key], np.int64)
    if channels.size == 0:
        raise ArtifactError(
            f"{path}: selected_neurons_dict.{key} selects no channel; leave the layer out of "
            "selected_layers"
        )
    unique, counts = np.unique(channels, return_counts=True)
    if unique.size < channels.size:
        raise ArtifactError(
            f"{path}: selected_neurons_dict.{key} names channel {unique[counts > 1][0]} "
            "more than once"
        )
    return channels


def _layer_weights(module: _SirenModule, path: Path) -> dict[int, float]:
    weights = {}
    for key, weight in module.layer_weights.items():
        if not _BLOCK_INDEX.fullmatch(key):
            raise ArtifactError(
                f"{path}: siren_module.layer_weights has the key {key!r}; expected a block index"
            )
        if abs(weight) > _FLOAT32_MAX:
            raise ArtifactError(
                f"{path}: siren_module.layer_weights.{key} is {weight}, which is not finite in "
                "float32"
            )
        weights[int(key)] = weight
    return weights


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
            f"{config_path.name}: missing {_names(expected - found)}, unexpected "
            f"{_names(found - expected)}; a hidden layer takes 3 places in `network` where its "
            "dropout rate is above 0, else 2"
        )
    return tuple(
        Dense(
            weight=_read_float32(file, f"network.{slot}.weight", (width, dims[n])),
            bias=_read_float32(file, f"network.{slot}.bias", (width,)),
        )
        for n, (slot, width) in enumerate(zip(slots, dims[1:], strict=True))
    )


def _dense_slots(dropout_rates: Sequence[float]) -> list[int]:
    """Where dense layers stand in `network`: ReLU and, for a rate above 0, Dropout are between."""
    return list(accumulate((3 if rate > 0 else 2 for rate in dropout_rates), initial=0))


def _read_float32(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    info = file.tensors[name]
    if info.shape != shape:
        raise ArtifactError(
            f"{file.path}: tensor {name!r} has shape {info.shape}; the mlp of {CONFIG_FILE} "
            f"makes it {shape}"
        )
    if info.dtype.kind in "iub":
        raise ArtifactError(f"{file.path}: tensor {name!r} is {info.dtype}; expected a float dtype")
    with np.errstate(over="ignore"):  # a float64 beyond float32 is caught as infinite
        values = file.read(name).astype(np.float32)
    if not all_finite(values):
        damaged = values.size - np.count_nonzero(np.isfinite(values))
        raise ArtifactError(
            f"{file.path}: tensor {name!r} has {damaged} values "
            "that are not finite in float32; the head is damaged"
        )
    return values


def _names(names: set[str]) -> str:
    """At most five of the names, sorted, and how many more there are."""
    shown = ", ".join(repr(name) for name in sorted(names)[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"
