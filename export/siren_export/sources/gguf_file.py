"""A GGUF file: its header, held against the file's size, and the stored bytes of its tensors.

The layout is that of ggml's specification (docs/gguf.md), versions 2 and 3. Of the gguf package
the tables of types and the dequantization are used, and its reader is not. It follows counts,
lengths and offsets without holding them against the size of the file, so a header that lies makes
it loop, allocate or return a tensor that is short; and it makes several arrays for each token of a
vocabulary.
"""

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from siren_runtime.bundle.files import ReadFailures
from siren_runtime.errors import CheckpointError

from .gguf_cursor import Cursor
from .local_file import check_is_file
from .weights import Array

Value = bool | int | float | str | Array | list[str]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
# Bounds of what a sane header holds, so that one that lies is refused before it costs memory.
_MAX_KEYS, _MAX_TENSORS, _MAX_AXES = 1 << 16, 1 << 16, 4
_MAX_KEY_BYTES, _MAX_NAME_BYTES = 1 << 16, 1 << 10


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file: its name, type, shape (rows first) and first byte in the file.

    Rows are of whole blocks of the type, so that some of them are a range of bytes.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """The bytes of a row: of the last axis."""
        values, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // values * size

    @property
    def nbytes(self) -> int:
        """The bytes of the whole tensor."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class GgufFile:
    """A GGUF file, of which nothing stays open or in memory but the header.

    Attributes:
        path: the file.
        metadata: the header's values by key; arrays are numpy arrays, or lists of strings.
        tensors: what the header says of each tensor, by name.

    Raises:
        CheckpointError: the file is missing, is no GGUF file, is cut short, or its header
            contradicts itself or the size of the file.
    """

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, StoredTensor]

    def __init__(self, path: Path) -> None:
        self.path = path
        check_is_file(path, CheckpointError)
        with ReadFailures(path, CheckpointError), path.open("rb") as file:
            size = file.seek(0, 2)
            if size < len(_MAGIC):
                raise CheckpointError(f"{path}: {size} bytes are no GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._parse(Cursor(data, path), size)

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return the stored bytes of a tensor, uint8 [rows, bytes]; of a vector, one row.

        Args:
            name: a key of `tensors`.
            rows: a slice of step 1; the default is all.

        Raises:
            CheckpointError: the file was cut short since it was opened, or cannot be read.
        """
        tensor = self.tensors[name]
        count = math.prod(tensor.shape[:-1])
        start, stop, step = (rows or slice(None)).indices(count)
        if step != 1:
            raise ValueError(f"cannot read {rows} of a tensor")
        wanted = max(0, stop - start) * tensor.row_bytes
        offset = tensor.offset + start * tensor.row_bytes
        with ReadFailures(self.path, CheckpointError):
            # Not by a map of the file, whose pages would stay in resident memory.
            data = np.fromfile(self.path, np.uint8, count=wanted, offset=offset)
        if data.size != wanted:
            raise CheckpointError(
                f"{self.path}: tensor {name!r}: found {data.size} of {wanted} bytes; the file "
                "changed while it was read"
            )
        return data.reshape(-1, tensor.row_bytes)

    def _parse(self, cursor: Cursor, size: int) -> None:
        if cursor.take(len(_MAGIC), "magic") != _MAGIC:
            raise CheckpointError(f"{self.path}: does not begin with 'GGUF'; it is no GGUF file")
        version = cursor.number("I", "version")
        if version & 0xFFFF == 0:
            raise CheckpointError(f"{self.path}: a big-endian GGUF file; convert it anew")
        if version not in _VERSIONS:
            raise CheckpointError(
                f"{self.path}: GGUF version {version}; supported: "
                f"{' and '.join(map(str, _VERSIONS))}. Convert the model anew"
            )
        tensors = cursor.count("number of tensors", _MAX_TENSORS)
        keys = cursor.count("number of keys", _MAX_KEYS)
        self.metadata = self._parse_metadata(cursor, keys)
        self.tensors = self._parse_tensors(cursor, tensors, size)

    def _parse_metadata(self, cursor: Cursor, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = cursor.string("key", _MAX_KEY_BYTES)
            if key in metadata:
                raise CheckpointError(f"{self.path}: the header holds {key!r} more than once")
            metadata[key] = cursor.value(key)
        return metadata

    def _parse_tensors(self, cursor: Cursor, count: int, size: int) -> dict[str, StoredTensor]:
        found: dict[str, StoredTensor] = {}
        for _ in range(count):
            name = cursor.string("name of a tensor", _MAX_NAME_BYTES)
            if name in found:
                raise CheckpointError(f"{self.path}: the header names tensor {name!r} twice")
            found[name] = self._parse_tensor(cursor, name)
        alignment = self._alignment()
        data_start = -(-cursor.position // alignment) * alignment
        tensors = {
            name: StoredTensor(name, tensor.type, tensor.shape, data_start + tensor.offset)
            for name, tensor in found.items()
        }
        self._check_places(list(tensors.values()), data_start, alignment, size)
        return tensors

    def _parse_tensor(self, cursor: Cursor, name: str) -> StoredTensor:
        """A tensor whose offset is from the start of the data."""
        what = f"tensor {name!r}"
        axes = cursor.number("I", f"{what}: number of axes")
        if not 1 <= axes <= _MAX_AXES:
            raise CheckpointError(f"{self.path}: {what} has {axes} axes; expected 1 to {_MAX_AXES}")
        # ggml has the axis first that runs fastest.
        shape = tuple(cursor.number("Q", f"{what}: shape") for _ in range(axes))[::-1]
        code = cursor.number("I", f"{what}: type")
        offset = cursor.number("Q", f"{what}: offset")
        try:
            stored_type = GGMLQuantizationType(code)
        except ValueError:
            raise CheckpointError(
                f"{self.path}: {what} is of type {code}, which the gguf package does not know; "
                "a newer one may: pip install -U gguf"
            ) from None
        values, _ = GGML_QUANT_SIZES[stored_type]
        if 0 in shape or shape[-1] % values:
            raise CheckpointError(
                f"{self.path}: {what} has shape {list(shape)}; expected rows of whole blocks of "
                f"{values} values, which {stored_type.name} is stored in"
            )
        return StoredTensor(name, stored_type, shape, offset)

    def _alignment(self) -> int:
        alignment = self.metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or not 1 <= alignment <= 1 << 30
            or alignment & (alignment - 1)
        ):
            raise CheckpointError(
                f"{self.path}: {_ALIGNMENT_KEY} is {alignment!r}; expected a power of two"
            )
        return alignment

    def _check_places(
        self, tensors: Sequence[StoredTensor], data_start: int, alignment: int, size: int
    ) -> None:
        """Refuse tensors that are not aligned, reach beyond the file, or share bytes."""
        end, before = data_start, ""
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            what = f"{self.path}: tensor {tensor.name!r}"
            if (tensor.offset - data_start) % alignment:
                raise CheckpointError(
                    f"{what} is at offset {tensor.offset - data_start}, which is not a multiple "
                    f"of the alignment {alignment}"
                )
            if tensor.offset < end:
                raise CheckpointError(f"{what} shares bytes with tensor {before!r}")
            end, before = tensor.offset + tensor.nbytes, tensor.name
            if end > size:
                raise CheckpointError(
                    f"{what} ends at byte {end} and the file has {size}; it is cut short or "
                    "damaged, get it again"
                )


def shown(value: Any) -> str:
    """A value of the header for an error, shortened."""
    return repr(value)[:200]
