"""A SIREN head artifact: siren_config.json and siren.safetensors, read and checked.

The format and its meaning are those of llm-siren 0.2.0: its content artifacts, with either
pooling, any subset of layers and any number of hidden layers.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Annotated, cast, get_args

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from siren_runtime.bundle.heads import Pooling
from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.errors import ArtifactError

from .local_file import read_json
from .safetensors_file import SafetensorsFile

CONFIG_FILE = "siren_config.json"
WEIGHTS_FILE = "siren.safetensors"

_BLOCK_INDEX = re.compile("0|[1-9][0-9]{0,8}")
_INT32_MAX = 2**31 - 1
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_Index = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
_Size = Annotated[int, Meta(ge=1, le=_INT32_MAX)]
_Classes = Annotated[int, Meta(ge=2, le=_INT32_MAX)]
_DropoutRate = Annotated[float, Meta(ge=0.0, lt=1.0)]
_Probability = Annotated[float, Meta(ge=0.0, le=1.0)]


@dataclass(frozen=True, eq=False)
class LayerSelection:
    """The channels that the head reads of one block.

    `layer` is the 0-based block, `channels` int64 [n] in the order of the features, `weight`
    the factor on them.
    """

    layer: int
    channels: NDArray[np.int64]
    weight: float


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer of the head: `weight` float32 [out, in], `bias` float32 [out]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Artifact:
    """A content head. `head` has ReLU between its layers; class 1 of `classes` is harm.

    `labels` names the classes; it is empty where the artifact does not name them.

    `layers` ascend, and the features are their channels in that order. `max_length` counts
    special tokens. `path` is the folder that holds the files.
    """

    source: str
    path: Path
    model_id: str
    model_revision: str | None
    pooling: Pooling
    layers: tuple[LayerSelection, ...]
    head: tuple[Linear, ...]
    classes: int
    labels: tuple[str, ...]
    max_length: int
    threshold: float

    @property
    def n_features(self) -> int:
        """How many channels the head reads, over all layers."""
        return sum(selection.channels.size for selection in self.layers)

    @property
    def deepest_layer(self) -> int:
        """The last block that the head reads."""
        return self.layers[-1].layer


class _Task(msgspec.Struct):
    task: str = "content"


class _BaseModel(msgspec.Struct):
    model_id: Annotated[str, Meta(min_length=1)]
    revision: str | None = None


class _SirenModule(msgspec.Struct):
    pooling_type: str
    selected_layers: Annotated[list[_Index], Meta(min_length=1)]
    selected_neurons_dict: dict[str, list[_Index]]
    layer_weights: dict[str, float] = {}


class _Mlp(msgspec.Struct):
    input_dim: _Size
    layer_dims: list[_Size]
    dropout_rates: list[_DropoutRate]
    num_classes: _Classes = 2
    class_names: list[str] = []


class _Inference(msgspec.Struct):
    max_length: _Size
    default_threshold: _Probability


class _Config(msgspec.Struct):
    """What of siren_config.json is used; other keys (training notes) are left alone."""

    base_model: _BaseModel
    siren_module: _SirenModule
    mlp: _Mlp
    inference: _Inference


def load_artifact(source: str | PathLike[str], *, revision: str | None = None) -> Artifact:
    """Read a SIREN head and check everything in it against everything else.

    Args:
        source: the artifact's folder, or its hub repository id.
        revision: branch, tag or commit of the hub repository; the default is its main branch.

    Raises:
        ArtifactError: the artifact cannot be found, is not a content artifact, or is damaged or
            inconsistent.
    """
    folder = resolve_folder(
        source,
        revision=revision,
        patterns=(CONFIG_FILE, WEIGHTS_FILE),
        error=ArtifactError,
        allow_symlinks=True,
    )
    config_path = folder / CONFIG_FILE
    config = _read_config(config_path)
    module, mlp = config.siren_module, config.mlp
    pooling = _check_pooling(module.pooling_type, config_path)
    layers = _select_layers(module, pooling, config_path)
    features = sum(selection.channels.size for selection in layers)
    if features != mlp.input_dim:
        raise ArtifactError(
            f"{config_path}: mlp.input_dim is {mlp.input_dim}, but selected_neurons_dict selects "
            f"{features} channels over {len(layers)} layers; they must be equal"
        )
    return Artifact(
        source=str(source),
        path=folder,
        model_id=config.base_model.model_id,
        model_revision=config.base_model.revision or None,
        pooling=pooling,
        layers=layers,
        head=_read_head(folder / WEIGHTS_FILE, mlp, config_path),
        classes=mlp.num_classes,
        labels=_class_names(mlp, config_path),
        max_length=config.inference.max_length,
        threshold=config.inference.default_threshold,
    )


def _read_config(path: Path) -> _Config:
    task = read_json(path, _Task, ArtifactError).task
    if task != "content":
        hint = " (trajectory heads are not supported yet)" if task == "trajectory" else ""
        raise ArtifactError(f"{path}: task is {task!r}; expected 'content'{hint}")
    return read_json(path, _Config, ArtifactError)


def _check_pooling(found: str, path: Path) -> Pooling:
    if found not in get_args(Pooling):
        raise ArtifactError(
            f"{path}: siren_module.pooling_type is {found!r}; expected one of "
            f"{', '.join(get_args(Pooling))}"
        )
    return cast("Pooling", found)


def _class_names(mlp: _Mlp, path: Path) -> tuple[str, ...]:
    names = mlp.class_names
    if names and (len(set(names)) != mlp.num_classes or len(names) != mlp.num_classes):
        raise ArtifactError(
            f"{path}: mlp.class_names is {names}; expected {mlp.num_classes} different names, one "
            "for each class"
        )
    return tuple(names)


def _key(layer: int, pooling: Pooling) -> str:
    return f"layer{layer}_{pooling}"


def _select_layers(
    module: _SirenModule, pooling: Pooling, path: Path
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


def _read_head(path: Path, mlp: _Mlp, config_path: Path) -> tuple[Linear, ...]:
    if len(mlp.layer_dims) != len(mlp.dropout_rates):
        raise ArtifactError(
            f"{config_path}: mlp.layer_dims has {len(mlp.layer_dims)} entries and "
            f"mlp.dropout_rates {len(mlp.dropout_rates)}; each hidden layer needs one of both"
        )
    slots = _linear_slots(mlp.dropout_rates)
    dims = [mlp.input_dim, *mlp.layer_dims, mlp.num_classes]
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
        Linear(
            weight=_read_float32(file, f"network.{slot}.weight", (width, dims[n])),
            bias=_read_float32(file, f"network.{slot}.bias", (width,)),
        )
        for n, (slot, width) in enumerate(zip(slots, dims[1:], strict=True))
    )


def _linear_slots(dropout_rates: list[float]) -> list[int]:
    """Where the Linear layers stand among Linear, ReLU and, where its rate is not 0, Dropout."""
    slots = [0]
    for rate in dropout_rates:
        slots.append(slots[-1] + (3 if rate > 0 else 2))
    return slots


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
    finite = np.isfinite(values)
    if not finite.all():
        raise ArtifactError(
            f"{file.path}: tensor {name!r} has {values.size - np.count_nonzero(finite)} values "
            "that are not finite in float32; the head is damaged"
        )
    return values


def _names(names: set[str]) -> str:
    """At most five of the names, sorted, and how many more there are."""
    shown = ", ".join(repr(name) for name in sorted(names)[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"
