"""Read safetensors files tensor by tensor, or by rows, without mapping their data.

The safetensors library checks the header (sizes, offsets, overlaps, holes, shapes); opening and
closing it touches no page but the header's. The bytes of a tensor are then read at the offset
that the header gives. The library's own reads are not used: up to 0.7 they only map the file, so
each page stays in resident memory until the file is closed, and its numpy side knows no 8-bit
float (still so in 0.8.0).
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from siren_runtime.bundle.files import ReadFailures
from siren_runtime.errors import SirenError

from .local_file import check_is_file
from .weights import Array, TensorInfo

# The 4-bit and 6-bit floats are left out: they mean nothing without the block scales that a
# quantization method stores beside them.
_DTYPES: dict[str, np.dtype[Any]] = {
    code: np.dtype(scalar)
    for code, scalar in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_MAX_AXES = 8


class SafetensorsFile:
    """A safetensors file: what its header says, and reading one tensor at a time.

    Nothing of the file stays open or in memory between reads.

    Args:
        path: the file.
        error: the class of error to raise, here and in `read`.

    Raises:
        error: the file is missing, damaged, or has a tensor of a dtype that cannot be read.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]

    def __init__(self, path: Path, error: type[SirenError]) -> None:
        self.path = path
        self._error = error
        self._offsets: dict[str, int] = {}  # of each tensor's first byte in the file
        check_is_file(path, error)
        try:
            with ReadFailures(path, error):
                with safe_open(path, framework="numpy"):  # only to check the header
                    pass
                self.tensors = self._parse_header()
        except (SafetensorError, ValueError, RecursionError) as failure:
            raise error(
                f"{path}: not a valid safetensors file: {failure}; it is damaged or incomplete, "
                "get it again"
            ) from failure

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor, or some rows of its first axis, in its stored dtype.

        Args:
            name: a key of `tensors`.
            rows: a slice of step 1; the shape of the result is that of numpy's slicing.

        Raises:
            error: the file has no such tensor, the tensor is empty, or the file was cut short
                since it was opened.
        """
        info = self.tensors.get(name)
        if info is None:
            raise self._error(f"{self.path}: there is no tensor {name!r}")
        if 0 in info.shape:
            raise self._error(f"{self.path}: tensor {name!r} is empty, of shape {info.shape}")
        shape, offset = info.shape, self._offsets[name]
        if rows is not None:
            if not shape or rows.step not in (None, 1):
                raise ValueError(f"cannot read {rows} of a tensor of shape {shape}")
            start, stop, _ = rows.indices(shape[0])
            row_bytes = info.nbytes // shape[0]
            shape = (max(0, stop - start), *shape[1:])
            offset += start * row_bytes
        count = math.prod(shape) * info.dtype.itemsize
        with ReadFailures(self.path, self._error):
            data = np.fromfile(self.path, np.uint8, count=count, offset=offset)
        if data.size != count:
            raise self._error(
                f"{self.path}: tensor {name!r}: found {data.size} of {count} bytes; the file "
                "changed while it was read"
            )
        return data.view(info.dtype).reshape(shape)

    def _parse_header(self) -> dict[str, TensorInfo]:
        with self.path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length), object_pairs_hook=self._unique)
        header.pop("__metadata__", None)
        return {name: self._tensor(name, entry, 8 + length) for name, entry in header.items()}

    def _tensor(self, name: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
        code, shape = entry["dtype"], tuple(entry["shape"])
        if code not in _DTYPES:
            raise self._error(
                f"{self.path}: tensor {name!r} has dtype {code}; expected one of "
                f"{', '.join(_DTYPES)}"
            )
        if len(shape) > _MAX_AXES:
            raise self._error(
                f"{self.path}: tensor {name!r} has {len(shape)} axes; expected at most {_MAX_AXES}"
            )
        self._offsets[name] = data_start + entry["data_offsets"][0]
        return TensorInfo(name, _DTYPES[code], shape)

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) < len(pairs):  # the library lets the last one win
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise self._error(f"{self.path}: the header names {name!r} more than once")
        return unique
