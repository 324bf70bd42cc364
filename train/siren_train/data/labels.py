"""Labels of rows: which kinds of harm a row is of, as its category column names them."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime.errors import InputError

from .rows import Row

UNKNOWN = -1  # of every label of a row that is harmful, and does not say how


def label_values(row: Row, labels: Sequence[str]) -> list[int]:
    """Return 1 for each label that the row is of, else 0.

    A harmful row that names none of them says nothing of which it is: all are -1, and the row
    neither trains a head of labels nor measures one.
    """
    values = [int(label in row.labels) for label in labels]
    return values if any(values) or row.label == 0 else [UNKNOWN] * len(labels)


def known(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Bool [rows]: whether the labels of a row, int64 [rows, labels], are known."""
    every: NDArray[np.bool_] = (values != UNKNOWN).all(axis=1)
    return every


def read_label_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Read which categories are of which label: {"hate": ["slurs", "Hate: *"], ...}.

    `*` stands for any characters. A label with an empty list is one that no category is of; it is
    left out of what is returned.

    Raises:
        InputError: it is not that, or has no label that a category is of.
    """
    found = read_lists(path, "labels and lists of categories")
    table = {label: tuple(categories) for label, categories in found.items() if categories}
    if not table:
        raise InputError(f"{path}: no category is of any label")
    return table


def read_lists(path: Path, what: str) -> dict[str, list[str]]:
    """Read a JSON object of lists of names.

    Args:
        what: it holds, for the error.

    Raises:
        InputError: the file cannot be read, or is not that.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected an object of {what}: {error}") from None
