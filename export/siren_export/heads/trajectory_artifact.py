"""The files of a trajectory head: siren_config.json and siren.safetensors, read and written.

The format and its meaning are those of llm-siren 0.2.0's `AgentSirenGuard`, with early exit, which
is its default:

    task           "trajectory"
    siren_module   {"pooling_type": "last", "hidden_state_index": K, "early_exit_blocks": K}
    render         {"tools": "rich", "truncation": "head_tail"}

siren.safetensors has `head.weight`, [hidden] or [1, hidden], and `head.bias`, [1] or a scalar.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from safetensors.numpy import save

from siren_export.sources.local_file import read_json
from siren_export.sources.safetensors_file import SafetensorsFile
from siren_runtime.errors import ArtifactError

from .base import CONFIG_FILE, WEIGHTS_FILE, write_artifact
from .neurons import INT32_MAX, read_float32, shown_names
from .trajectory import TrajectoryHead

TASK = "trajectory"
_Blocks = Annotated[int, Meta(ge=1, le=INT32_MAX)]


class _SirenModule(msgspec.Struct):
    pooling_type: Literal["last"]
    hidden_state_index: _Blocks
    early_exit_blocks: _Blocks


class _Render(msgspec.Struct, forbid_unknown_fields=True):
    """How a trajectory becomes text; what is not known here could make another text of it."""

    tools: Literal["rich"]
    truncation: Literal["head_tail"]


class _Config(msgspec.Struct):
    siren_module: _SirenModule
    render: _Render


def read_trajectory_head(folder: Path) -> TrajectoryHead:
    """Read the head of a trajectory artifact from its folder.

    Raises:
        ArtifactError: it is damaged or inconsistent.
    """
    path = folder / CONFIG_FILE
    module = read_json(path, _Config, ArtifactError).siren_module
    blocks = module.early_exit_blocks
    if module.hidden_state_index != blocks:
        raise ArtifactError(
            f"{path}: siren_module.hidden_state_index is {module.hidden_state_index} and "
            f"early_exit_blocks {blocks}; the state behind {blocks} blocks is the one of that "
            "index, so the two must be equal"
        )
    file = SafetensorsFile(folder / WEIGHTS_FILE, ArtifactError)
    expected, found = {"head.weight", "head.bias"}, set(file.tensors)
    if found != expected:
        raise ArtifactError(
            f"{file.path}: its tensors are not those of a trajectory head: missing "
            f"{shown_names(expected - found)}, unexpected {shown_names(found - expected)}"
        )
    width = file.tensors["head.weight"].shape[-1:] or (1,)
    weight = _one_of(file, "head.weight", width, (1, *width))
    bias = _one_of(file, "head.bias", (1,), ())
    return TrajectoryHead((blocks - 1,), weight.reshape(-1), float(bias.reshape(-1)[0]))


def write_trajectory_artifact(
    folder: Path,
    head: TrajectoryHead,
    *,
    model_id: str,
    model_revision: str | None,
    max_length: int,
    threshold: float,
) -> None:
    """Write a trajectory artifact into `folder`; what lies there of other weights goes first.

    Args:
        head: of one layer.

    Raises:
        InputError: a file cannot be written.
    """
    (layer,) = head.layers
    config: dict[str, Any] = {
        "task": TASK,
        "base_model": {"model_id": model_id, "revision": model_revision},
        "siren_module": {
            "pooling_type": "last",
            "hidden_state_index": layer + 1,
            "early_exit_blocks": layer + 1,
        },
        "render": {"tools": "rich", "truncation": "head_tail"},
        "inference": {"max_length": max_length, "default_threshold": threshold},
    }
    tensors = {
        "head.weight": np.ascontiguousarray(head.weight[None], np.float32),
        "head.bias": np.array([head.bias], np.float32),
    }
    write_artifact(folder, save(tensors), config)


def _one_of(
    file: SafetensorsFile, name: str, shape: tuple[int, ...], other: tuple[int, ...]
) -> np.ndarray:
    """A tensor that may have either of two shapes."""
    found = file.tensors[name].shape
    return read_float32(file, name, other if found == other else shape)
