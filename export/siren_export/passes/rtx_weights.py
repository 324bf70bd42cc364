"""Matrices in 8 or 4 bits, products in the compute dtype: DequantizeLinear before each MatMul.

The form in which TensorRT-RTX takes quantized weights. Symmetric: int8 with a scale for each output
channel; int4 with a scale for each block of inputs of an output channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import GuardGraph
from siren_export.graph.weights import Weight

from .edit import Linear, add_weight, before, drop_unread, linears
from .four_bits import Grid, round_matrix
from .options import Options

# Inputs that share an int4 scale. Of MiniLM's verdicts on 1,135 validation rows 16 kept 99.0 %, 32
# 98.0 %; it costs half a bit more a weight.
_BLOCK = 16
FOUR_BITS = Grid(_BLOCK, signed=False, stored=np.float16)
_LARGEST_INT8 = 127


def quantize_for_rtx_int8(graph: GuardGraph, options: Options) -> None:
    """Put the matrix of every linear in 8 bits; pooling and the head stay as they are."""
    for linear in linears(graph):
        _dequantize(graph, linear, _PerChannel(graph.weights[linear.matrix_name]))


def quantize_for_rtx_int4(graph: GuardGraph, options: Options) -> None:
    """Put the matrix of every linear in 4 bits; pooling and the head stay as they are.

    Sensitive matrices have 8 bits. One whose inputs are no whole blocks, or with an odd number of
    outputs, stays as it is.
    """
    for linear in linears(graph):
        source = graph.weights[linear.matrix_name]
        rows, columns = source.shape
        if linear.matrix_name in options.wider:
            _dequantize(graph, linear, _PerChannel(source))
        elif rows % _BLOCK == 0 and columns % 2 == 0:
            moments = options.moments(linear.matrix_name)
            _dequantize(graph, linear, _PerBlock(source, moments))


@dataclass(frozen=True)
class _PerChannel:
    """A matrix [in, out] as int8, and scales [out]; both made when written."""

    source: Weight
    dtype = ir.DataType.INT8

    @property
    def scales_shape(self) -> tuple[int, ...]:
        return self.source.shape[1:]

    @property
    def attributes(self) -> dict[str, Any]:
        return {"axis": 1}

    def values(self) -> Iterator[np.ndarray]:
        matrix, scales = self._read()
        yield np.rint(matrix / scales).clip(-_LARGEST_INT8 - 1, _LARGEST_INT8).astype(np.int8)

    def scales(self) -> Iterator[np.ndarray]:
        yield self._read()[1].astype(self.source.dtype.numpy())

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        """The scales are rounded to the dtype they are stored in, to add none of its error."""
        matrix = np.concatenate(list(self.source.blocks())).astype(np.float32)
        stored = self.source.dtype.numpy()
        scales = (np.abs(matrix).max(axis=0) / _LARGEST_INT8).astype(stored)
        return matrix, np.maximum(scales, np.finfo(stored).tiny).astype(np.float32)


@dataclass
class _PerBlock:
    """A matrix [in, out] as int4, two to a byte, and scales [in / block, out]."""

    source: Weight
    moments: np.ndarray | None
    dtype = ir.DataType.INT4
    _scales: np.ndarray | None = None  # left by writing the values, so as not to round twice

    @property
    def scales_shape(self) -> tuple[int, ...]:
        rows, columns = self.source.shape
        return rows // _BLOCK, columns

    @property
    def attributes(self) -> dict[str, Any]:
        return {"axis": 0, "block_size": _BLOCK}

    def values(self) -> Iterator[np.ndarray]:
        matrix = np.concatenate(list(self.source.blocks())).astype(np.float32)
        integers, self._scales = round_matrix(matrix, FOUR_BITS, self.moments)
        nibbles = integers.reshape(-1).view(np.uint8) & 0xF
        yield nibbles[::2] | nibbles[1::2] << 4  # the first in the low half

    def scales(self) -> Iterator[np.ndarray]:
        if self._scales is None:
            next(self.values())
        assert self._scales is not None
        yield self._scales.astype(self.source.dtype.numpy())


def _dequantize(graph: GuardGraph, linear: Linear, q: _PerChannel | _PerBlock) -> None:
    name = linear.matrix_name
    values = Weight(q.dtype, q.source.shape, q.values)
    scales = Weight(q.source.dtype, q.scales_shape, q.scales)
    restored = before(graph, linear.product, linear.name).op(
        "DequantizeLinear",
        add_weight(graph, f"{name}.{q.dtype.name.lower()}", values),
        add_weight(graph, f"{name}.scale", scales),
        **q.attributes,
    )
    linear.product.replace_input_with(1, restored)
    drop_unread(graph, [linear.matrix])
