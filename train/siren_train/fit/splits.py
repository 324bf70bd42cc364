"""The rows of a training run: train and validation rows of one or more stores, checked."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np

from siren_runtime.errors import InputError
from siren_train.store.features import FeatureSet, IntArray
from siren_train.store.noise import read_noise
from siren_train.store.store import FeatureStore

from .folds import FOLDS
from .settings import Settings


def load_splits(
    stores: Sequence[FeatureStore], settings: Settings, noise: FeatureStore | None = None
) -> tuple[FeatureSet, FeatureSet]:
    """Return the train and validation rows, cut to the first `settings.max_layer` layers.

    Args:
        stores: of the same rows, pooled in different precisions. The rows of all but the first are
            taken as copies of those of the first.
        noise: of some of the same texts by another engine; the train rows hold what it differs by.

    Raises:
        InputError: a store has no such pooling, splits or layers, or its rows are not those of the
            first.
    """
    store = stores[0]
    for other in stores[1:]:
        _check_same_rows(store, other)
    layers = store.manifest.layers
    if settings.max_layer is not None and not 1 <= settings.max_layer <= layers:
        raise InputError(
            f"{store.folder}: max_layer is {settings.max_layer}; the backbone has {layers} layers"
        )
    depth = settings.max_layer or layers
    train_rows, validation = (
        reduce(
            FeatureSet.with_copies,
            (
                each.features(split, settings.pooling, settings.head).first_layers(depth)
                for each in stores
            ),
        )
        for split in ("train", "validation")
    )
    if noise is not None:
        _check_depth(noise, depth)
        differences = read_noise(store, noise, settings.pooling)
        train_rows = replace(train_rows, noise=differences[:, :depth])
    return train_rows, validation


def _check_depth(noise: FeatureStore, depth: int) -> None:
    if noise.manifest.layers < depth:
        raise InputError(
            f"{noise.folder}: has {noise.manifest.layers} layers, and the head reads {depth}; "
            f"extract it with --max-layer {depth}"
        )


def _check_same_rows(first: FeatureStore, other: FeatureStore) -> None:
    for field in first.manifest.__struct_fields__:
        expected, found = getattr(first.manifest, field), getattr(other.manifest, field)
        if field not in ("precision", "dtype", "engines") and found != expected:
            raise InputError(
                f"{other.folder}: stores that a head is trained on together hold the same rows, "
                f"but {field} is {found!r} here and {expected!r} in {first.folder}"
            )


def check_folds(
    folds: IntArray, train_rows: FeatureSet, validation: FeatureSet, folder: Path
) -> None:
    """Refuse rows that are too few to hold out a fold, fit what is left, and measure the fold.

    Args:
        folds: int64 [rows] of `train_rows` and then `validation`, as make_folds returns them.
        folder: of the store, for error messages.

    Raises:
        InputError: the rows are too few.
    """
    in_train, in_validation = np.split(folds, [train_rows.rows])
    for fold in range(FOLDS):
        left = train_rows.targets[in_train != fold].sum(axis=0)
        for name in np.array(train_rows.classes)[left == 0].tolist():
            raise InputError(
                f"{folder}: the train rows of class {name!r} are too few: none is left once one "
                f"of {FOLDS} folds is held out; add rows of it"
            )
        if not (in_validation != fold).any() or not (folds == fold).any():
            raise InputError(
                f"{folder}: {train_rows.rows} train and {validation.rows} validation rows are too "
                f"few for {FOLDS} folds; add rows"
            )
