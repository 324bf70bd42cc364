"""What two engines' features of the same texts differ by: noise that a head should not mind."""

import numpy as np

from siren_runtime.bundle.heads import Pooling
from siren_runtime.errors import InputError

from .features import FloatArray
from .reuse import pooled_by_text
from .store import FeatureStore

_ROWS = 4096  # at most, evenly spaced over the store
# What two stores must agree on for a text's features to differ by their engines alone.
_SAME = ("backbone_sha256", "max_length", "channels", "generator")


def read_noise(store: FeatureStore, other: FeatureStore, pooling: Pooling) -> FloatArray:
    """The differences of the train rows whose texts are in both stores, in either's splits.

    Returns:
        float32 [rows, layers, channels], of the layers that both have.

    Raises:
        InputError: the stores are of one engine, of other backbones, limits or poolings, or share
            no text; or a file is damaged.
    """
    _check_engines(store, other, pooling)
    theirs = pooled_by_text(other, pooling)
    shared = {  # a text that stands there twice counts once
        digest: row for row, digest in enumerate(store.texts("train")) if digest in theirs
    }
    if not shared:
        raise InputError(
            f"{other.folder}: no train text of {store.folder} is in it; extract some of the same "
            "rows, with --max-train-rows"
        )
    layers = min(store.manifest.layers, other.manifest.layers)
    own = store.array("train", pooling)
    chosen = list(shared)[:: -(-len(shared) // _ROWS)]
    noise = np.empty((len(chosen), layers, store.manifest.channels), np.float32)
    for number, digest in enumerate(chosen):
        found = theirs.get(digest)
        assert found is not None
        noise[number] = found[:layers]
        noise[number] -= own[shared[digest], :layers]
    return noise


def _check_engines(store: FeatureStore, other: FeatureStore, pooling: Pooling) -> None:
    for field in _SAME:
        found, expected = getattr(other.manifest, field), getattr(store.manifest, field)
        if found != expected:
            raise InputError(
                f"{other.folder}: of another backbone than {store.folder}: {field} is {found!r}, "
                f"not {expected!r}"
            )
    if other.manifest.precision == store.manifest.precision:
        raise InputError(
            f"{other.folder}: pooled in {other.manifest.precision}, as {store.folder} is; "
            "extract it with another --precision"
        )
    if pooling not in other.manifest.poolings:
        raise InputError(f"{other.folder}: has no {pooling}; extract it with --pooling {pooling}")
