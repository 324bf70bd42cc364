"""The files of a polynomial head: siren_config.json and siren.safetensors, read and written.

siren_config.json has `base_model`, `siren_module` and `inference` as a content head's, and

    task           "polynomial"
    polynomial     {"orders": K, "rank": R, "input_dim": n}

siren.safetensors has `mean`, `scale`, `weight` [n], `bias` [1], and of each order from 2 to K
`order.{k}.factors` [R] and `order.{k}.directions` [R, n].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from safetensors.numpy import save

from siren_export.sources.local_file import read_json
from siren_export.sources.safetensors_file import SafetensorsFile
from siren_runtime.errors import ArtifactError
from siren_runtime.generation.manifest import TrainedOn

from .base import CONFIG_FILE, WEIGHTS_FILE, write_artifact
from .neurons import (
    INT32_MAX,
    SirenModule,
    neurons_key,
    read_float32,
    read_selection,
    shown_names,
)
from .polynomial import PolynomialHead, Term
from .selected import LayerSelection

TASK = "polynomial"
MOST_ORDERS = 16  # powers beyond leave float32 at the first feature that is far out


class _Polynomial(msgspec.Struct, forbid_unknown_fields=True):
    orders: Annotated[int, Meta(ge=1, le=MOST_ORDERS)]
    rank: Annotated[int, Meta(ge=1, le=INT32_MAX)]
    input_dim: Annotated[int, Meta(ge=1, le=INT32_MAX)]


class _Config(msgspec.Struct):
    siren_module: SirenModule
    polynomial: _Polynomial


def read_polynomial_head(folder: Path) -> PolynomialHead:
    """Read the head of a polynomial artifact from its folder.

    Raises:
        ArtifactError: it is damaged or inconsistent.
    """
    path = folder / CONFIG_FILE
    config = read_json(path, _Config, ArtifactError)
    module, shape = config.siren_module, config.polynomial
    pooling, layers = read_selection(module, shape.input_dim, "polynomial.input_dim", path)
    file = SafetensorsFile(folder / WEIGHTS_FILE, ArtifactError)
    expected = {"mean", "scale", "weight", "bias"} | {
        f"order.{k}.{part}"
        for k in range(2, shape.orders + 1)
        for part in ("factors", "directions")
    }
    found = set(file.tensors)
    if found != expected:
        raise ArtifactError(
            f"{file.path}: its tensors do not match polynomial.orders of {path.name}: missing "
            f"{shown_names(expected - found)}, unexpected {shown_names(found - expected)}"
        )
    mean, scale, weight = (
        read_float32(file, n, (shape.input_dim,)) for n in ("mean", "scale", "weight")
    )
    if not (scale > 0).all():
        raise ArtifactError(
            f"{file.path}: tensor 'scale' has {int((scale <= 0).sum())} values that are not above "
            "0; features are divided by it"
        )
    terms = tuple(
        Term(
            read_float32(file, f"order.{k}.factors", (shape.rank,)),
            read_float32(file, f"order.{k}.directions", (shape.rank, shape.input_dim)),
        )
        for k in range(2, shape.orders + 1)
    )
    bias = float(read_float32(file, "bias", (1,))[0])
    return PolynomialHead(pooling, layers, mean, scale, weight, bias, terms)


def write_polynomial_artifact(
    folder: Path,
    head: PolynomialHead,
    *,
    model_id: str,
    model_revision: str | None,
    layers: Sequence[LayerSelection],
    max_length: int,
    threshold: float,
    trained_on: TrainedOn | None = None,
) -> None:
    """Write a polynomial artifact into `folder`; what lies there of other weights goes first.

    Args:
        trained_on: the generator whose features the head was trained on, if it was.

    Raises:
        InputError: a file cannot be written.
    """
    rank = len(head.terms[0].factors) if head.terms else 1
    config: dict[str, Any] = {
        "task": TASK,
        "base_model": {"model_id": model_id, "revision": model_revision},
        "siren_module": {
            "pooling_type": head.pooling,
            "selected_layers": [layer.layer for layer in layers],
            "layer_weights": {str(layer.layer): layer.weight for layer in layers},
            "selected_neurons_dict": {
                neurons_key(layer.layer, head.pooling): layer.channels.tolist() for layer in layers
            },
        },
        "polynomial": {"orders": head.orders, "rank": rank, "input_dim": head.weight.size},
        "inference": {"max_length": max_length, "default_threshold": threshold},
    }
    if trained_on is not None:
        config["trained_on"] = msgspec.to_builtins(trained_on)
    tensors = {
        "mean": head.mean,
        "scale": head.scale,
        "weight": head.weight,
        "bias": np.array([head.bias], np.float32),
    }
    for order, term in enumerate(head.terms, start=2):
        tensors[f"order.{order}.factors"] = term.factors
        tensors[f"order.{order}.directions"] = term.directions
    contiguous = {name: np.ascontiguousarray(t, np.float32) for name, t in tensors.items()}
    write_artifact(folder, save(contiguous), config)
