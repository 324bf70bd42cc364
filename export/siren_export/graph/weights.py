"""Weights that are read when they are written: the graph refers to them, nothing holds them."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from siren_export.sources.finite import all_finite
from siren_export.sources.safetensors import prefix_of
from siren_export.sources.weights import Blocks, WeightSource
from siren_runtime.bundle.manifest import FileSpec
from siren_runtime.errors import CheckpointError

# ONNX recommends page-aligned offsets, so that a runtime can map each tensor by itself.
ALIGNMENT = 4096
# Large tables are read and cast in blocks of about this many bytes.
BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Stored:
    """What a weight is made of where the checkpoint has it in blocks of few bits.

    `read` gives some of its rows, [out, in] of a matrix, as they are stored.
    """

    bits: int
    has_minimums: bool
    read: Callable[[slice], Blocks]


@dataclass(frozen=True)
class Weight:
    """A tensor of the graph: `blocks()` yields its values in row-major order, piece by piece.

    `stored` is there where they are exactly those of blocks that the checkpoint has, or these times
    a power of two.
    """

    dtype: ir.DataType
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[np.ndarray]]
    stored: Stored | None = None

    @property
    def nbytes(self) -> int:
        return (math.prod(self.shape) * self.dtype.bitwidth + 7) // 8


def from_array(array: np.ndarray) -> Weight:
    """A weight that is held in memory: channel indices, biases."""
    return Weight(ir.DataType.from_numpy(array.dtype), array.shape, lambda: iter([array]))


def computed(dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> Weight:
    """A weight that `make` computes each time it is read: head matrices, rotary tables."""
    return Weight(dtype, shape, lambda: iter([make()]))


@dataclass(frozen=True)
class Rows:
    """Where a matrix lies in a stored one that holds several: from `start` on, of `stored` rows."""

    start: int
    stored: int


@dataclass(frozen=True)
class BackboneWeights:
    """The tensors of a backbone as graph weights, checked against the shape the config gives.

    Every method raises CheckpointError, naming the tensor: when it is missing or of another
    shape at once, when its values do not fit `dtype` at the time of writing.
    """

    source: WeightSource

    def matrix(
        self,
        name: str,
        shape: tuple[int, int],
        dtype: ir.DataType,
        scale: float = 1.0,
        rows: Rows | None = None,
    ) -> Weight:
        """A linear's [out, in] matrix as [in, out]; some rows of what is stored.

        Args:
            scale: a power of two, by which the values are multiplied.
        """
        part = self._part(name, shape, rows)

        def blocks() -> Iterator[np.ndarray]:
            values = self._cast(name, self.source.read(name, part), dtype, scale)
            yield np.ascontiguousarray(values.T)

        stored = self._stored(name, scale) if rows is None else None
        return Weight(dtype, shape[::-1], blocks, stored)

    def table(self, name: str, shape: tuple[int, ...], dtype: ir.DataType) -> Weight:
        """An embedding [rows, channels] or a kernel [rows, ...], streamed in blocks of rows."""
        self._check(name, shape)
        rows = max(1, BLOCK_BYTES // (math.prod(shape[1:]) * 4))

        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, shape[0], rows):
                block = self.source.read(name, slice(start, min(start + rows, shape[0])))
                yield self._cast(name, block, dtype)

        return Weight(dtype, shape, blocks, self._stored(name))

    def vector(
        self,
        name: str,
        size: int,
        dtype: ir.DataType,
        scale: float = 1.0,
        offset: float = 0.0,
        rows: Rows | None = None,
    ) -> Weight:
        """A bias or a norm's scale, plus `offset`, times `scale`; some rows of what is stored."""
        part = self._part(name, (size,), rows)

        def blocks() -> Iterator[np.ndarray]:
            values = self.source.read(name, part)
            if offset:
                values = values.astype(np.float32) + np.float32(offset)
            yield self._cast(name, values, dtype, scale)

        return Weight(dtype, (size,), blocks)

    def check_prefix(self, *prefixes: str) -> None:
        """Refuse weights that are stored as another family's: transformers would not find them.

        Args:
            prefixes: of the family's stored names, or of none of them.

        Raises:
            CheckpointError: a tensor is stored under another prefix.
        """
        for tensor in self.source.tensors.values():
            before = prefix_of(tensor.name)
            if before and not any(
                tensor.name.startswith(prefix) and len(prefix) >= len(before) for prefix in prefixes
            ):
                raise CheckpointError(
                    f"{self.source.source}: tensor {tensor.name!r} is stored under {before!r}; a "
                    f"model of the config's model_type has {' or '.join(map(repr, prefixes))} or "
                    "nothing there"
                )

    def _part(self, name: str, shape: tuple[int, ...], rows: Rows | None) -> slice | None:
        self._check(name, shape if rows is None else (rows.stored, *shape[1:]))
        return None if rows is None else slice(rows.start, rows.start + shape[0])

    def _stored(self, name: str, scale: float = 1.0) -> Stored | None:
        layout = self.source.block_layout(name)
        if layout is None:
            return None
        return Stored(*layout, lambda rows: self.source.read_blocks(name, rows).times(scale))

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self.source.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{self.source.source}: tensor {name!r} is missing, which the config calls for "
                f"with shape {list(shape)}"
            )
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.source.source}: tensor {name!r} has shape {list(tensor.shape)}, "
                f"expected {list(shape)} by the config"
            )

    def _cast(
        self, name: str, values: np.ndarray, dtype: ir.DataType, scale: float = 1.0
    ) -> np.ndarray:
        with np.errstate(over="ignore"):
            if scale != 1.0:
                values = values.astype(np.float32) * np.float32(scale)
            cast = values.astype(dtype.numpy(), copy=False)
        if dtype != ir.DataType.FLOAT and not all_finite(cast):
            raise CheckpointError(
                f"{self.source.source}: tensor {name!r} holds values that {dtype.name} "
                "cannot represent; export with --precision fp32"
            )
        return cast


def write_weights(
    weights: Mapping[str, Weight], path: Path, written: Callable[[int], None]
) -> tuple[dict[str, int], FileSpec]:
    """Write `weights` one after another to `path`, each at an aligned offset.

    Args:
        weights: name -> weight, written in this order.
        path: the file to make.
        written: called with the bytes just written.

    Returns:
        name -> offset in bytes, and the file's size and SHA-256.
    """
    offsets: dict[str, int] = {}
    digest = hashlib.sha256()
    size = 0
    with path.open("wb") as file:

        def append(data: bytes | memoryview) -> None:
            nonlocal size
            file.write(data)
            digest.update(data)
            size += len(data)
            written(len(data))

        for name, weight in weights.items():
            append(bytes(-size % ALIGNMENT))
            offsets[name] = size
            for block in weight.blocks():
                append(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            if size - offsets[name] != weight.nbytes:
                raise AssertionError(f"{name}: {size - offsets[name]} of {weight.nbytes} bytes")
        file.flush()
        os.fsync(file.fileno())
    return offsets, FileSpec(size=size, sha256=digest.hexdigest())
