"""The rows that a head is trained on: pooled channels, labels and data sets."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Labelled rows of one pooling.

    Attributes:
        features: float16 or float32 [rows, layers, channels]; may be memory-mapped.
        labels: int64 [rows], class indices.
        datasets: int64 [rows], indices into `names`.
        originals: int64 [rows], the row that a row is a changed copy of, or itself.
        names: of the data sets.
        classes: names of the classes, by index.
    """

    features: NDArray[np.floating]
    labels: IntArray
    datasets: IntArray
    originals: IntArray
    names: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def rows(self) -> int:
        return len(self.labels)

    @property
    def is_copy(self) -> NDArray[np.bool_]:
        """Bool [rows]: whether a row is a changed copy of another."""
        changed: NDArray[np.bool_] = self.originals != np.arange(self.rows)
        return changed

    @property
    def layers(self) -> int:
        return int(self.features.shape[1])

    def first_layers(self, count: int) -> "FeatureSet":
        """Return the first `count` layers of every row."""
        return replace(self, features=self.features[:, :count])

    def with_copies(self, other: "FeatureSet") -> "FeatureSet":
        """Return these rows, and after them the same rows as `other` has them, as their copies."""
        return replace(
            self,
            features=np.concatenate([self.features, other.features]),
            labels=np.concatenate([self.labels, other.labels]),
            datasets=np.concatenate([self.datasets, other.datasets]),
            originals=np.concatenate([self.originals, other.originals]),
        )

    def where(self, rows: NDArray[np.bool_]) -> "FeatureSet":
        """Return the rows of a mask, bool [rows], that keeps no copy without its original."""
        position = np.cumsum(rows) - 1
        return replace(
            self,
            features=self.features[rows],
            labels=self.labels[rows],
            datasets=self.datasets[rows],
            originals=position[self.originals[rows]],
        )

    def without_copies(self) -> "FeatureSet":
        """Return the rows that are no copies."""
        return self.where(~self.is_copy)

    @staticmethod
    def concatenate(first: "FeatureSet", second: "FeatureSet") -> "FeatureSet":
        """Return the rows of two sets of the same data sets and classes."""
        return replace(
            first,
            features=np.concatenate([first.features, second.features]),
            labels=np.concatenate([first.labels, second.labels]),
            datasets=np.concatenate([first.datasets, second.datasets]),
            originals=np.concatenate([first.originals, second.originals + first.rows]),
        )


def balanced_weights(datasets: IntArray, balance: float) -> FloatArray:
    """Return float32 [rows] of mean 1: a data set of n rows weighs n ** (1 - balance) in all.

    With a balance of 0 every row counts the same, with 1 every data set.
    """
    weights: DoubleArray = np.bincount(datasets)[datasets].astype(np.float64) ** -balance
    normalized: FloatArray = (weights / weights.mean()).astype(np.float32)
    return normalized


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Per-channel `mean` and `scale`, float32 [channels]; a constant channel has scale 1."""

    mean: FloatArray
    scale: FloatArray

    @classmethod
    def fit(cls, features: NDArray[np.floating]) -> "Standardizer":
        """Measure [rows, channels]."""
        mean = features.mean(axis=0, dtype=np.float64)
        deviation = features.std(axis=0, dtype=np.float64)
        return cls(
            mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
        )

    def apply(self, features: NDArray[np.floating]) -> FloatArray:
        """Return float32 [rows, channels] of mean 0 and deviation 1."""
        return (features.astype(np.float32) - self.mean) / self.scale
