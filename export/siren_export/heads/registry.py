"""The kinds of heads there are, found by the task of siren_config.json; and loading an artifact."""

from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from siren_export.sources.local_file import read_json
from siren_export.sources.sizes import LARGEST_SIZE
from siren_runtime.bundle.files import sha256_of
from siren_runtime.bundle.heads import PRIMARY_HEAD, Decision, HeadSpec, LabelDecision, Temperature
from siren_runtime.bundle.hub import resolve_folder
from siren_runtime.bundle.manifest import NOTICE_FILE
from siren_runtime.bundle.types import Probability
from siren_runtime.errors import ArtifactError
from siren_runtime.generation.manifest import TrainedOn

from .base import CONFIG_FILE, DECISION_FILE, EXITS_FOLDER, WEIGHTS_FILE, Artifact, Head
from .decision_file import read_decision
from .mlp_artifact import TASKS, read_mlp_head
from .polynomial_artifact import TASK, read_polynomial_head
from .trajectory_artifact import TASK as TRAJECTORY
from .trajectory_artifact import read_trajectory_head

# Task -> what reads its head from an artifact's folder.
_READERS: dict[str, Callable[[Path], Head]] = {
    **{TASKS[activation]: partial(read_mlp_head, activation=activation) for activation in TASKS},
    TASK: read_polynomial_head,
    TRAJECTORY: read_trajectory_head,
}

_FILES = (CONFIG_FILE, WEIGHTS_FILE, DECISION_FILE, NOTICE_FILE)


class _Task(msgspec.Struct):
    task: str = "content"


class _BaseModel(msgspec.Struct):
    model_id: Annotated[str, Meta(min_length=1)]
    revision: str | None = None


class _Label(msgspec.Struct, forbid_unknown_fields=True):
    threshold: Probability
    temperature: Temperature = 1.0


class _Inference(msgspec.Struct):
    max_length: Annotated[int, Meta(ge=1, le=LARGEST_SIZE)]
    default_threshold: Probability
    labels: dict[str, _Label] = {}


class _Config(msgspec.Struct):
    """What of siren_config.json every head has."""

    base_model: _BaseModel
    inference: _Inference
    trained_on: TrainedOn | None = None


def load_artifact(source: str | PathLike[str], *, revision: str | None = None) -> Artifact:
    """Read a SIREN head and check everything in it against everything else.

    Args:
        source: the artifact's folder, or its hub repository id.
        revision: branch, tag or commit of the hub repository; the default is its main branch.

    Raises:
        ArtifactError: the artifact cannot be found, is of another kind, or is damaged or
            inconsistent.
    """
    folder = resolve_folder(
        source,
        revision=revision,
        patterns=(*_FILES, *(f"{EXITS_FOLDER}/*/{name}" for name in _FILES)),
        error=ArtifactError,
        allow_symlinks=True,
    )
    path = folder / CONFIG_FILE
    task = _task(path)
    read_head = _READERS[task]
    config = read_json(path, _Config, ArtifactError)
    head = read_head(folder)
    return Artifact(
        source=str(source),
        path=folder,
        model_id=config.base_model.model_id,
        model_revision=config.base_model.revision or None,
        max_length=config.inference.max_length,
        decision=read_decision(folder, PRIMARY_HEAD, head.spec)
        or _decision(config.inference, head, path),
        head=head,
        trained_on=config.trained_on,
        task="trajectory" if task == TRAJECTORY else "content",
        weights_sha256=sha256_of(folder / WEIGHTS_FILE),
    )


def check_same_head(folder: Path, name: str, spec: HeadSpec, weights_sha256: str | None) -> None:
    """Refuse a folder whose head is not a bundle's, so that none gets another's decision.

    Args:
        name, spec: of the bundle's.
        weights_sha256: of the weights that the bundle was exported from; None where it does not
            say, and any head that is like it passes.

    Raises:
        ArtifactError: the folder holds no head, one of another kind, pooling, layers or labels, or
            other weights.
    """
    found = _READERS[_task(folder / CONFIG_FILE)](folder).spec
    for field in ("kind", "pooling", "layers", "features", "classes", "labels"):
        here, there = getattr(found, field), getattr(spec, field)
        if here != there:
            raise ArtifactError(
                f"{folder}: is another head than {name!r} of the bundle: {field} is {here!r} here "
                f"and {there!r} there; give the folder that {name!r} was exported from"
            )
    if weights_sha256 not in (None, sha256_of(folder / WEIGHTS_FILE)):
        raise ArtifactError(
            f"{folder}: {WEIGHTS_FILE} is not the one that {name!r} of the bundle was exported "
            "from; give that head's folder, or export the head that is here, and calibrate it"
        )


def _decision(inference: _Inference, head: Head, path: Path) -> Decision:
    """How the head decides; of labels that are named, each by its own threshold."""
    expected = head.spec.labels if head.spec.has_labels else []
    found = inference.labels
    if found and set(found) != set(expected):
        raise ArtifactError(
            f"{path}: inference.labels decides on {sorted(found)}; expected "
            f"{sorted(expected) or 'none, since the head has no labels of their own'}"
        )
    labels = [LabelDecision(n, found[n].threshold, found[n].temperature) for n in expected if found]
    return Decision(inference.default_threshold, labels=labels)


def _task(path: Path) -> str:
    task = read_json(path, _Task, ArtifactError).task
    if task not in _READERS:
        expected = " or ".join(map(repr, _READERS))
        raise ArtifactError(f"{path}: task is {task!r}; expected {expected}")
    return task
