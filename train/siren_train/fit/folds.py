"""Which rows each fold of a cross-validation holds out."""

import numpy as np

from siren_train.store.features import FeatureSet, IntArray

FOLDS = 5


def make_folds(features: FeatureSet, folds: int, seed: int, measured: IntArray) -> IntArray:
    """Return int64 [rows]: the fold that holds each row out, or -1 for a row that always trains.

    The rows of each class of each measured data set are spread evenly over the folds. A copy is in
    the fold of its original.

    Args:
        folds: how many.
        seed: of the draw.
        measured: indices of the data sets that are held out in turn; the rows of others always
            train.
    """
    fold = np.full(features.rows, -1, np.int64)
    strata = features.strata
    groups = features.datasets * max(len(features.classes), strata.max() + 1) + strata
    countable = ~features.is_copy & np.isin(features.datasets, measured)
    rng = np.random.default_rng(seed)
    for group in np.unique(groups[countable]):
        rows = rng.permutation(np.flatnonzero(countable & (groups == group)))
        fold[rows] = np.arange(len(rows)) % folds
    return fold[features.originals]
