"""What every artifact has in common: the neurons that a head reads, and its tensors."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, cast, get_args

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from siren_export.sources.finite import all_finite
from siren_export.sources.safetensors_file import SafetensorsFile
from siren_runtime.errors import ArtifactError

from .base import CONFIG_FILE
from .selected import LayerSelection, MeanPooling

INT32_MAX = 2**31 - 1
_BLOCK_INDEX = re.compile("0|[1-9][0-9]{0,8}")
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_Index = Annotated[int, Meta(ge=0, le=INT32_MAX)]


class SirenModule(msgspec.Struct):
    pooling_type: str
    selected_layers: Annotated[list[_Index], Meta(min_length=1)]
    selected_neurons_dict: dict[str, list[_Index]]
    layer_weights: dict[str, float] = {}


def _check_pooling(found: str, path: Path) -> MeanPooling:
    if found not in get_args(MeanPooling):
        raise ArtifactError(
            f"{path}: siren_module.pooling_type is {found!r}; expected one of "
            f"{', '.join(get_args(MeanPooling))}"
        )
    return cast("MeanPooling", found)


def neurons_key(layer: int, pooling: str) -> str:
    return f"layer{layer}_{pooling}"


def read_selection(
    module: SirenModule, input_dim: int, key: str, path: Path
) -> tuple[MeanPooling, tuple[LayerSelection, ...]]:
    """Read how neurons are pooled and which they are, as many as the head takes.

    Args:
        key: where siren_config.json has `input_dim`.

    Raises:
        ArtifactError: they do not agree, or one of them is no such thing.
    """
    pooling = _check_pooling(module.pooling_type, path)
    layers = _select_layers(module, pooling, path)
    features = sum(selection.channels.size for selection in layers)
    if features != input_dim:
        raise ArtifactError(
            f"{path}: {key} is {input_dim}, but selected_neurons_dict selects "
            f"{features} channels over {len(layers)} layers; they must be equal"
        )
    return pooling, layers


def _select_layers(
    module: SirenModule, pooling: MeanPooling, path: Path
) -> tuple[LayerSelection, ...]:
    layers = sorted(module.selected_layers)
    for layer, following in pairwise(layers):
        if layer == following:
            raise ArtifactError(f"{path}: siren_module.selected_layers names layer {layer} twice")
    found, expected = set(module.selected_neurons_dict), {neurons_key(n, pooling) for n in layers}
    if found != expected:
        raise ArtifactError(
            f"{path}: siren_module.selected_neurons_dict does not match selected_layers: missing "
            f"{shown_names(expected - found)}, unexpected {shown_names(found - expected)}"
        )
    weights = _layer_weights(module, path)
    return tuple(
        LayerSelection(
            layer, _channels(module, neurons_key(layer, pooling), path), weights.get(layer, 1.0)
        )
        for layer in layers
    )


def _channels(module: SirenModule, key: str, path: Path) -> NDArray[np.int64]:
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


def _layer_weights(module: SirenModule, path: Path) -> dict[int, float]:
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


def read_float32(file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    info = file.tensors[name]
    if info.shape != shape:
        raise ArtifactError(
            f"{file.path}: tensor {name!r} has shape {info.shape}; {CONFIG_FILE} makes it {shape}"
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


def shown_names(names: set[str]) -> str:
    """At most five of the names, sorted, and how many more there are."""
    shown = ", ".join(repr(name) for name in sorted(names)[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"
