"""What the weights of a backbone are read through, whatever file holds them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor: its name in the file, its stored dtype, its shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


BLOCK = 32  # inputs that share a scale where a matrix is stored in blocks


@dataclass(frozen=True)
class Blocks:
    """A matrix [out, in] as a file of 4 or 8 bits has it, with a scale for each block of inputs.

        W = integer * scale + minimum               where there are minimums
        W = (integer - middle) * scale              else; the middle is 8, or 128 of 8 bits

    Attributes:
        integers: uint8 [out, in], of 4 bits 0 to 15.
        scales: float32 [out, in / BLOCK].
        minimums: float32 [out, in / BLOCK], or None.
    """

    integers: Array
    scales: Array
    minimums: Array | None

    def times(self, factor: float) -> "Blocks":
        """The blocks of the matrix times a power of two."""
        by = np.float32(factor)
        minimums = None if self.minimums is None else self.minimums * by
        return Blocks(self.integers, self.scales * by, minimums)


class WeightSource(Protocol):
    """The tensors of a backbone, read one by one.

    Names are those of the bare model, as families call for them (`layers.0.mlp.up_proj.weight`);
    matrices are [out, in].
    """

    @property
    def source(self) -> str:
        """What errors call the checkpoint: its folder or its repository."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> what is stored under it."""

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a weight, or some rows of its first axis, in its stored dtype.

        Nothing else of the file is read or kept.

        Args:
            name: a key of `tensors`.
            rows: a slice of step 1.

        Raises:
            CheckpointError: there is no such tensor, it is no float of a kind that a backbone's
                weights may have, it cannot be read, or it holds a value that is not finite.
        """

    def block_layout(self, name: str) -> tuple[int, bool] | None:
        """Bits (4 or 8) and whether there are minimums, where `read_blocks` gives the matrix."""

    def read_blocks(self, name: str, rows: slice | None = None) -> Blocks:
        """Return a matrix as it is stored, or some rows of it, where `block_layout` is not None.

        Raises:
            CheckpointError: it cannot be read, or a scale or minimum is not finite.
        """

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file of weights, by its name."""
