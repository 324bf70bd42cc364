"""Labels of rows: which kinds of harm a row is of, as its category column names them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .rows import Row

SEPARATOR = "+"
UNKNOWN = -1  # of every label of a row that is harmful, and does not say how


def label_values(row: Row, labels: Sequence[str]) -> list[int]:
    """Return 1 for each label that the row's category names, else 0.

    A harmful row that names none of them says nothing of which it is: all are -1, and the row
    neither trains a head of labels nor measures one.
    """
    named = {part.strip() for part in row.category.split(SEPARATOR)}
    values = [int(label in named) for label in labels]
    return values if any(values) or row.label == 0 else [UNKNOWN] * len(labels)


def known(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool [rows]: whether the labels of a row, int64 [rows, labels], are known."""
    every: NDArray[np.bool_] = (values != UNKNOWN).all(axis=1)
    return every
