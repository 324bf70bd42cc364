"""ensemble.json: bundles of the same classes whose scores are averaged.

{"format_version": 1, "members": ["small", "large"], "threshold": 0.5, "tiers": []}
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from siren_runtime.errors import BundleError

from .manifest import MANIFEST_FILE, Manifest, check_relative
from .reader import read_manifest
from .thresholds import Tier, check_tiers
from .types import Probability, Strict

FORMAT_VERSION = 1
ENSEMBLE_FILE = "ensemble.json"


class EnsembleManifest(Strict, frozen=True):
    """ensemble.json. `members` are folders of bundles inside the ensemble's own.

    `threshold` None is the mean of the members'. `tiers` are as in a bundle's manifest.
    """

    format_version: int
    members: Annotated[list[str], msgspec.Meta(min_length=2)]
    threshold: Probability | None = None
    tiers: list[Tier] = msgspec.field(default_factory=list)


def is_ensemble(folder: Path) -> bool:
    """Whether a folder holds ensemble.json, readable or not.

    Raises:
        BundleError: the folder may not be entered.
    """
    try:
        (folder / ENSEMBLE_FILE).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read: {error.strerror}") from None
    return True


def read_ensemble(folder: Path) -> EnsembleManifest:
    """Read the ensemble.json of a folder.

    Raises:
        BundleError: it is missing, damaged or of another format version, names a folder outside
            its own, behind a symbolic link or twice, or its tiers are not those of a manifest.
    """
    root = Path(os.path.realpath(folder))
    path = root / ENSEMBLE_FILE
    try:
        manifest = msgspec.json.decode(read_manifest(root, ENSEMBLE_FILE), type=EnsembleManifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a valid ensemble: {error}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {manifest.format_version}, this runtime reads {FORMAT_VERSION}"
        )
    for member in manifest.members:
        check_relative(member, str(path))
        if os.path.realpath(root / member) != str(root / member):
            raise BundleError(f"{path}: member {member!r} is behind a symbolic link")
    if len(set(manifest.members)) < len(manifest.members):
        raise BundleError(f"{path}: each member counts once, found {manifest.members}")
    check_tiers(manifest.tiers, str(path))
    return manifest


def check_classes(manifests: Sequence[Manifest]) -> None:
    """Refuse members whose scores are not of one thing.

    Raises:
        BundleError: their classes or labels differ.
    """
    first, *others = (manifest.head for manifest in manifests)
    for manifest, head in zip(manifests[1:], others, strict=True):
        if (head.classes, head.labels) != (first.classes, first.labels):
            raise BundleError(
                f"the members of an ensemble must have the same classes: {MANIFEST_FILE} of "
                f"{manifests[0].backbone.id} has {first.classes} {first.labels}, of "
                f"{manifest.backbone.id} {head.classes} {head.labels}"
            )


def span_thresholds(manifests: Sequence[Manifest]) -> dict[int, float]:
    """The thresholds of spans by size in tokens: the mean of the members', where all have one."""
    by_member = [{span.tokens: span.threshold for span in m.spans} for m in manifests]
    sizes = sorted(set.intersection(*(set(thresholds) for thresholds in by_member)))
    return {size: float(np.mean([member[size] for member in by_member])) for size in sizes}
