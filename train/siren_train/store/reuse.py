"""Features of an earlier store, for rows whose text it has: data or copies that have grown.

A text's features do not depend on the texts that it is pooled with, so those of the same engine are
the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from siren_runtime.bundle.heads import Pooling
from siren_runtime.errors import InputError

from .features import FloatArray
from .store import FeatureStore, StoreManifest

# What two stores must agree on for features of the one to be those of the other.
_SAME = (
    "backbone_sha256",
    "precision",
    "max_length",
    "dtype",
    "layers",
    "channels",
    "generator",
)


@dataclass(frozen=True, eq=False)
class Pooled:
    """What a store has of one pooling, by text."""

    _places: dict[bytes, tuple[str, int]]
    _arrays: dict[str, np.memmap[Any, Any]]

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def get(self, digest: bytes) -> FloatArray | None:
        """The pooled neurons [layers, channels] of the text that `text_digest` says this of."""
        place = self._places.get(digest)
        return None if place is None else self._arrays[place[0]][place[1]]


def check_reusable(
    store: FeatureStore, manifest: StoreManifest, poolings: Sequence[Pooling]
) -> None:
    """See that the features of `store` are those that a store of `manifest` would hold.

    Raises:
        InputError: they are of another engine, or of one that is not known, or of other poolings.
    """
    for field in _SAME:
        found, expected = getattr(store.manifest, field), getattr(manifest, field)
        if found != expected:
            raise InputError(
                f"{store.folder}: cannot be reused: {field} is {found!r}, asked for {expected!r}"
            )
    missing = [pooling for pooling in poolings if pooling not in store.manifest.poolings]
    if missing:
        raise InputError(f"{store.folder}: cannot be reused: it has no {', '.join(missing)}")
    if "residual_last" in poolings:
        raise InputError(f"{store.folder}: trajectories are not reused; extract them again")
    store.check_engines(manifest)


def pooled_by_text(store: FeatureStore, pooling: Pooling) -> Pooled:
    """Index a complete store by the texts of its rows; 170 bytes or so for each.

    Raises:
        InputError: a file is damaged, or missing as in stores that earlier releases made.
    """
    splits = store.manifest.splits
    places = {
        digest: (split, place)
        for split in splits
        for place, digest in enumerate(store.texts(split))
    }
    return Pooled(places, {split: store.array(split, pooling) for split in splits})
