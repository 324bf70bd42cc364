"""The weights of a GGUF file, by the names and in the layout of transformers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from siren_runtime.bundle.files import sha256_of
from siren_runtime.errors import CheckpointError

from .finite import all_finite
from .gguf_blocks import LAYOUTS, unpack
from .gguf_file import GgufFile, StoredTensor
from .gguf_names import names_of_tensors
from .weights import Array, Blocks, TensorInfo

_FLOATS: Mapping[str, np.dtype[np.generic]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class _Layout:
    """How a tensor of the file differs from the one of transformers.

    Attributes:
        stored: the tensor in the file.
        order: of the file's rows; None where they are in order.
        added: what was added to every value.
    """

    stored: StoredTensor
    order: Array | None = None
    added: float = 0.0


@dataclass(frozen=True, eq=False)
class GgufWeights:
    """A `WeightSource` over a GGUF file. Quantized tensors are read as float32.

    `tensors` maps the names of transformers; a `TensorInfo.name` is the same name.
    """

    file: GgufFile
    source: str
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    _layouts: Mapping[str, _Layout] = field(repr=False)

    def read(self, name: str, rows: slice | None = None) -> Array:
        """As `WeightSource.read`; weights may be of every type that `gguf.dequantize` takes."""
        layout = self._layouts.get(name)
        if layout is None:
            raise CheckpointError(
                f"{self.file.path}: there is no tensor for {name!r}; the file is incomplete or "
                "not what its header says"
            )
        if len(layout.stored.shape) == 1:
            values = _decoded(self.file.read(layout.stored.name), layout.stored.type).reshape(-1)
            values = values[slice(None) if layout.order is None else layout.order]
            values = values[rows or slice(None)]
        else:
            values = _decoded(self.stored_rows(name, rows), layout.stored.type)
        if layout.added:
            values = values.astype(np.float32, copy=False) - np.float32(layout.added)
        self._check_finite(name, values)
        return values

    def block_layout(self, name: str) -> tuple[int, bool] | None:
        """As `WeightSource.block_layout`."""
        stored = self.stored(name)
        return LAYOUTS.get(stored.type.name) if len(stored.shape) == 2 else None

    def read_blocks(self, name: str, rows: slice | None = None) -> Blocks:
        """As `WeightSource.read_blocks`: integers, scales and minimums are those of the file."""
        blocks = unpack(self.stored_rows(name, rows), self.stored(name).type)
        self._check_finite(name, blocks.scales)
        if blocks.minimums is not None:
            self._check_finite(name, blocks.minimums)
        return blocks

    def stored(self, name: str) -> StoredTensor:
        """What the file holds for a tensor, before anything is undone."""
        return self._layouts[name].stored

    def stored_rows(self, name: str, rows: slice | None = None) -> Array:
        """The bytes of a matrix's rows, uint8 [rows, bytes], in transformers' order."""
        layout = self._layouts[name]
        if layout.order is None:
            return self.file.read(layout.stored.name, rows)
        data: Array = self.file.read(layout.stored.name)[layout.order[rows or slice(None)]]
        return data

    def _check_finite(self, name: str, values: Array) -> None:
        if not all_finite(values):
            raise CheckpointError(
                f"{self.file.path}: tensor {self.stored(name).name!r} holds NaN or infinite "
                "values; the file is damaged"
            )

    def digests(self) -> dict[str, str]:
        """The SHA-256 of the file, by its name."""
        return {self.file.path.name: sha256_of(self.file.path)}


def open_weights(
    file: GgufFile, source: str, architecture: str, heads: int, kv_heads: int
) -> GgufWeights:
    """Map the tensors of a file to those that transformers has for the architecture.

    Args:
        heads, kv_heads: of queries, and of keys and values.

    Raises:
        CheckpointError: a tensor is not known, of a type that is no weight's, or of a shape that
            is no whole number of heads.
    """
    tensors, layouts = {}, {}
    for name, stored_name in names_of_tensors(architecture, file.tensors, file.path).items():
        stored = file.tensors[stored_name]
        if not _has_values(stored.type) or len(stored.shape) > 2:
            raise CheckpointError(
                f"{file.path}: tensor {stored_name!r} is {stored.type.name} of shape "
                f"{list(stored.shape)}; expected a matrix or vector of a type that the gguf "
                "package dequantizes"
            )
        order = None
        if architecture == "llama" and ".self_attn.q_proj." in name:
            order = _rotary_order(stored, heads, file)
        elif architecture == "llama" and ".self_attn.k_proj." in name:
            order = _rotary_order(stored, kv_heads, file)
        added = 1.0 if architecture.startswith("gemma") and "norm." in name else 0.0
        layouts[name] = _Layout(stored, order, added)
        dtype = np.dtype(np.float32) if added else _dtype(stored.type)
        tensors[name] = TensorInfo(name, dtype, stored.shape)
    return GgufWeights(file, source, tensors, layouts)


def _rotary_order(stored: StoredTensor, heads: int, file: GgufFile) -> Array:
    """Rows of the file in transformers' order.

    llama.cpp rotates neighbouring channels, transformers those half a head apart; its converter
    puts the rows of q and k in the order that makes the two the same.
    """
    rows = stored.shape[0]
    if rows % (2 * heads):
        raise CheckpointError(
            f"{file.path}: tensor {stored.name!r} has {rows} rows, which are no {heads} heads of "
            "pairs"
        )
    order: Array = np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return order


@cache
def _has_values(stored: GGMLQuantizationType) -> bool:
    """Whether the gguf package makes floats of the type."""
    _, size = GGML_QUANT_SIZES[stored]
    try:
        dequantize(np.zeros((1, size), np.uint8), stored)
    except NotImplementedError:
        return False
    return True


def _dtype(stored: GGMLQuantizationType) -> np.dtype[np.generic]:
    return _FLOATS.get(stored.name, np.dtype(np.float32))


def _decoded(data: Array, stored: GGMLQuantizationType) -> Array:
    """Stored bytes [rows, bytes] as floats [rows, channels]."""
    if stored.name in _FLOATS:
        return data.view(_FLOATS[stored.name])
    with np.errstate(all="ignore"):  # values that are not finite are looked for afterwards
        values: Array = dequantize(data, stored)
    return values
