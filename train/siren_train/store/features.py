"""The rows that a head is trained on: pooled neurons, labels and data sets."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]

_COLUMNS = 64  # that are measured at once


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Labelled rows of one pooling.

    Attributes:
        pooled: float16 or float32 [rows, layers, channels], every channel's neurons pooled over
            the text of the row; may be memory-mapped.
        labels: int64 [rows], indices into `classes`; or where a row may be of several, int64
            [rows, classes], 0 or 1.
        datasets: int64 [rows], indices into `names`.
        collections: int64 [rows], which rows were collected from one source.
        originals: int64 [rows], the row that a row is a changed copy of. A row that is no copy is
            its own.
        names: names of the data sets.
        classes: names of the classes.
        collection_names: names of the collections; "data set/source" where rows name their source.
        expected_harm: float64 [rows], 0 to 1, of what follows each row; where rows are prefixes.
        noise: float32 [any, layers, channels], what another engine's features of some texts differ
            by, whichever rows these are.
    """

    pooled: NDArray[np.floating]
    labels: IntArray
    datasets: IntArray
    collections: IntArray
    originals: IntArray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    expected_harm: DoubleArray | None = None
    collection_names: tuple[str, ...] = ()
    noise: FloatArray | None = None

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def is_copy(self) -> NDArray[np.bool_]:
        """Bool [rows]: whether a row is a changed copy of another."""
        changed: NDArray[np.bool_] = self.originals != np.arange(self.rows)
        return changed

    @property
    def targets(self) -> DoubleArray:
        """float64 [rows, classes]: 1 for each class that a row is of, else 0."""
        if self.labels.ndim == 2:
            return self.labels.astype(np.float64)
        one_hot: DoubleArray = np.eye(len(self.classes))[self.labels]
        return one_hot

    @property
    def strata(self) -> IntArray:
        """int64 [rows]: one number for all rows that are of the same classes."""
        if self.labels.ndim == 1:
            return self.labels
        _, numbers = np.unique(self.labels, axis=0, return_inverse=True)
        return numbers.reshape(-1).astype(np.int64)

    def decided(self, logits: NDArray[np.floating], labels: IntArray) -> IntArray:
        """What logits [rows, classes] decide, in the form of `labels`: the class of the largest; or
        each label from the logit on by which it has the best F1 on these rows, whose labels are
        given. Rare labels hardly ever reach a probability of one half, and get thresholds of their
        own when the head is trained.
        """
        if labels.ndim == 1:
            largest: IntArray = logits.argmax(axis=1).astype(np.int64)
            return largest
        columns = [_best_f1(of, true) for of, true in zip(logits.T, labels.T, strict=True)]
        return np.stack(columns, axis=1)

    @property
    def layers(self) -> int:
        return int(self.pooled.shape[1])

    def first_layers(self, count: int) -> "FeatureSet":
        """Return the first `count` layers of every row."""
        noise = None if self.noise is None else self.noise[:, :count]
        return replace(self, pooled=self.pooled[:, :count], noise=noise)

    def with_copies(self, other: "FeatureSet") -> "FeatureSet":
        """Return these rows, followed by those of `other` as their copies.

        Args:
            other: the same rows, pooled in another precision.
        """
        return replace(
            self,
            pooled=np.concatenate([self.pooled, other.pooled]),
            labels=np.concatenate([self.labels, other.labels]),
            datasets=np.concatenate([self.datasets, other.datasets]),
            collections=np.concatenate([self.collections, other.collections]),
            originals=np.concatenate([self.originals, other.originals]),
            expected_harm=_joined(self.expected_harm, other.expected_harm),
        )

    def where(self, rows: NDArray[np.bool_]) -> "FeatureSet":
        """Return the rows of a mask, bool [rows], which takes no copy without its original."""
        position = np.cumsum(rows) - 1
        return replace(
            self,
            pooled=self.pooled[rows],
            labels=self.labels[rows],
            datasets=self.datasets[rows],
            collections=self.collections[rows],
            originals=position[self.originals[rows]],
            expected_harm=None if self.expected_harm is None else self.expected_harm[rows],
        )

    def without_copies(self) -> "FeatureSet":
        """Return the rows that are no copies; these, and no copy of them, if all are."""
        is_copy = self.is_copy
        return self.where(~is_copy) if is_copy.any() else self

    @staticmethod
    def concatenate(first: "FeatureSet", second: "FeatureSet") -> "FeatureSet":
        """Return the rows of two sets of the same data sets and classes."""
        return replace(
            first,
            pooled=np.concatenate([first.pooled, second.pooled]),
            labels=np.concatenate([first.labels, second.labels]),
            datasets=np.concatenate([first.datasets, second.datasets]),
            collections=np.concatenate([first.collections, second.collections]),
            originals=np.concatenate([first.originals, second.originals + first.rows]),
            expected_harm=_joined(first.expected_harm, second.expected_harm),
        )


def _joined(first: DoubleArray | None, second: DoubleArray | None) -> DoubleArray | None:
    return None if first is None or second is None else np.concatenate([first, second])


def _best_f1(logits: NDArray[np.floating], labels: IntArray) -> IntArray:
    """int64 [rows]: 1 for the rows of the largest logits, as many as give the best F1."""
    order = np.argsort(-logits, kind="stable")
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(labels) + 1) + max(int(labels.sum()), 1))
    best = int(f1.argmax()) if hits[-1] else -1
    return (logits >= logits[order[best]] if best >= 0 else np.zeros(len(labels))).astype(np.int64)


def balanced_weights(
    features: FeatureSet, balance: float, rows: NDArray[Any] | None = None
) -> FloatArray:
    """Return the weight of each row, float32 [rows] of mean 1.

    The weights of a data set of n rows sum to n ** (1 - balance), up to a factor that is common to
    all. With a balance of 0 every row counts the same, and with 1 every data set does. In the same
    way the collections of a data set share the weight of each of its classes.

    Args:
        rows: those that count, a mask or their places; None takes all.
    """
    taken = slice(None) if rows is None else rows
    datasets, collections = features.datasets[taken], features.collections[taken]
    weights: DoubleArray = np.bincount(datasets)[datasets].astype(np.float64) ** -balance
    shares: DoubleArray = np.bincount(collections)[collections].astype(np.float64) ** -balance
    strata = features.strata[taken]
    groups = datasets * (strata.max(initial=0) + 1) + strata
    weights *= shares * np.bincount(groups)[groups] / np.bincount(groups, shares)[groups]
    normalized: FloatArray = (weights / weights.mean()).astype(np.float32)
    return normalized


@dataclass(frozen=True, eq=False)
class Standardizer:
    """The `mean` and `scale` of each column, float32 [columns]. A constant column has scale 1."""

    mean: FloatArray
    scale: FloatArray

    @classmethod
    def fit(cls, values: NDArray[np.floating]) -> "Standardizer":
        """Measure `values`, [rows, columns]; beside them memory holds float64 of some columns."""
        parts = np.array_split(values, -(-values.shape[1] // _COLUMNS), axis=1)
        mean = np.concatenate([part.mean(axis=0, dtype=np.float64) for part in parts])
        deviation = np.concatenate([part.std(axis=0, dtype=np.float64) for part in parts])
        return cls(
            mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
        )

    def apply(self, values: NDArray[np.floating]) -> FloatArray:
        """Return `values`, [rows, columns], brought to mean 0 and deviation 1, in float32."""
        standardized = values.astype(np.float32)
        standardized -= self.mean
        standardized /= self.scale
        return standardized
