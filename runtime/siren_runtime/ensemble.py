"""An ensemble: guards of the same classes whose scores are averaged.

Guard.load reads it from a list of bundles, or from a folder that holds bundles and ensemble.json:

{"format_version": 1, "members": ["small", "large"], "threshold": 0.5, "tiers": []}
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np

from siren_runtime.bundle.manifest import MANIFEST_FILE, Manifest, check_relative
from siren_runtime.bundle.reader import read_manifest
from siren_runtime.bundle.thresholds import Tier, check_tiers
from siren_runtime.bundle.types import Probability

from .errors import BundleError, InputError
from .guard import Guard, ScoreResult

FORMAT_VERSION = 1
ENSEMBLE_FILE = "ensemble.json"


class EnsembleManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ensemble.json. `members` are folders of bundles inside the ensemble's own.

    `threshold` None is the mean of the members'. `tiers` are as in a bundle's manifest.
    """

    format_version: int
    members: Annotated[list[str], msgspec.Meta(min_length=2)]
    threshold: Probability | None = None
    tiers: list[Tier] = []


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


class Ensemble(Guard):
    """Scores text by the mean of its members' scores; `Guard.load` makes one.

    What each member scores is the same cleaned text, by its own tokenizer and length. `features`
    are the members', one after another. It has no manifest of its own, and no streams.
    """

    def __init__(
        self,
        members: Sequence[Guard],
        *,
        threshold: float | None = None,
        tiers: Sequence[Tier] = (),
    ) -> None:
        """Average loaded guards.

        Args:
            threshold: the default one; None is the mean of the members'.
            tiers: by falling threshold.

        Raises:
            BundleError: there are fewer than two members, or their classes differ.
        """
        if len(members) < 2:
            raise BundleError(f"an ensemble has two members or more, found {len(members)}")
        _check_classes([member.manifest for member in members])
        self.members = tuple(members)
        self._default_threshold = (
            float(np.mean([member.default_threshold for member in members]))
            if threshold is None
            else threshold
        )
        self._tiers = tuple(tiers)

    @property
    def manifest(self) -> Manifest:
        """Refused: each of `members` has a manifest.

        Raises:
            InputError: always.
        """
        self._refuse("has no manifest of its own; see those of its members")

    @property
    def default_threshold(self) -> float:
        """The threshold that applies where a call passes none."""
        return self._default_threshold

    @property
    def base_model_id(self) -> str:
        """The hub ids of the backbones, joined by " + "."""
        return " + ".join(member.base_model_id for member in self.members)

    @property
    def backend(self) -> str:
        """What the members run on, joined by " + "."""
        return " + ".join(member.backend for member in self.members)

    def stream(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: stream the members.

        Raises:
            InputError: always.
        """
        self._refuse("does not stream; open a stream of each member and average their scores")

    streams = stream

    def close(self) -> None:
        """Free every member's engine; the ensemble cannot score after that."""
        for member in self.members:
            member.close()

    def _score(
        self,
        cleaned: list[str],
        threshold: float,
        features: bool,
        token_budget: int | None = None,
    ) -> list[ScoreResult]:
        each = [
            member._score(cleaned, threshold, features, token_budget) for member in self.members
        ]
        return [
            self._verdict(
                float(np.mean([result.score for result in results])),
                threshold,
                np.concatenate([result.features for result in results]) if features else None,
            )
            for results in zip(*each, strict=True)
        ]

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"the ensemble of {self.base_model_id} {what}")


def _check_classes(manifests: Sequence[Manifest]) -> None:
    first, *others = (manifest.head for manifest in manifests)
    for manifest, head in zip(manifests[1:], others, strict=True):
        if (head.classes, head.labels) != (first.classes, first.labels):
            raise BundleError(
                f"the members of an ensemble must have the same classes: {MANIFEST_FILE} of "
                f"{manifests[0].backbone.id} has {first.classes} {first.labels}, of "
                f"{manifest.backbone.id} {head.classes} {head.labels}"
            )
