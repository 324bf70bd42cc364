"""Exits: heads that read the first blocks alone, and lie in the folder of the head they stand for.

exits/4 of an artifact is an artifact itself, of the same backbone, that reads blocks 0 to 3.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from siren_runtime.errors import ArtifactError, InputError

from .base import CONFIG_FILE, EXITS_FOLDER, Artifact
from .registry import load_artifact


def parse_depths(value: str) -> tuple[int, ...]:
    """The depths that an option names, in blocks: "2,4".

    Raises:
        InputError: it is no list of different whole numbers from 1.
    """
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < len(part) < 5 for part in parts):
        raise InputError(f"exits are numbers of blocks, such as 2,4; found {value!r}")
    depths = [int(part) for part in parts]
    if 0 in depths or len(set(depths)) < len(depths):
        raise InputError(f"exits stand behind different numbers of blocks, found {value!r}")
    return (*sorted(depths),)


def exit_folder(artifact: Path, depth: int) -> Path:
    """Where the exit behind `depth` blocks lies in an artifact's folder."""
    return artifact / EXITS_FOLDER / str(depth)


def with_exits(artifact: Artifact, depths: Sequence[int]) -> Artifact:
    """The artifact with the exits at some depths, which lie beside it.

    Raises:
        ArtifactError: there is none at a depth, it does not read the same of a text, it reads
            further, or the artifact is one that exits cannot stand for.
    """
    if artifact.further:
        raise ArtifactError(
            f"{artifact.source}: exits decide for one head; export it without "
            f"{', '.join(artifact.further)}, or without exits"
        )
    _check_kind(artifact)
    found = {depth: _exit(artifact, depth) for depth in sorted(set(depths))}
    return replace(artifact, exits=found)


def _exit(artifact: Artifact, depth: int) -> Artifact:
    folder = exit_folder(artifact.path, depth)
    if not (folder / CONFIG_FILE).is_file():
        there = sorted(p.parent.name for p in folder.parent.glob(f"*/{CONFIG_FILE}"))
        raise ArtifactError(
            f"{artifact.source}: no exit behind {depth} blocks, {folder} is no artifact; there "
            f"{'are those behind ' + ', '.join(there) if there else 'is none'}; make it with siren "
            f"train --exits {depth}"
        )
    found = load_artifact(folder)
    _check_kind(found)
    for what, own, expected in (
        ("is of the backbone", _backbone(found), _backbone(artifact)),
        ("pools", found.head.spec.pooling, artifact.head.spec.pooling),
        ("has a max_length of", found.max_length, artifact.max_length),
    ):
        if own != expected:
            raise ArtifactError(
                f"{folder}: the exit {what} {own}, but the head of {artifact.source} {expected}"
            )
    if found.head.taps.deepest >= depth or depth > artifact.head.taps.deepest:
        raise ArtifactError(
            f"{folder}: the exit reads blocks up to {found.head.taps.deepest}; one behind {depth} "
            f"blocks reads blocks below {depth}, and ends before the head does, which reads blocks "
            f"up to {artifact.head.taps.deepest}"
        )
    return found


def _backbone(artifact: Artifact) -> tuple[str, str | None]:
    return artifact.model_id, artifact.model_revision


def _check_kind(artifact: Artifact) -> None:
    spec = artifact.head.spec
    if spec.activation != "softmax" or spec.classes != 2 or not spec.pools_mean:
        raise ArtifactError(
            f"{artifact.source}: exits are for heads of two classes that pool the mean; this is a "
            f"head of kind {spec.kind!r} with {spec.classes} outputs"
        )
