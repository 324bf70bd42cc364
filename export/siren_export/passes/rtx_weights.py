"""Matrices in 8 or 4 bits, products in the compute dtype: DequantizeLinear before each MatMul.

The form in which TensorRT-RTX takes quantized weights. Symmetric: int8 with a scale for each output
channel; int4 with a scale for each block of inputs of an output channel.

A matrix that the checkpoint has in 4-bit blocks without minimums (Q4_0) keeps integers and scales,
half of which are negative: TensorRT-RTX 1.7.1 takes negative scales, and zero, of int4, and refuses
both of int8. Scales of float16 stay what they are. up_proj's, which are authored times 2^-4, lose
bits where they were under 2^-10, and are off by 2^-25 at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import GuardGraph
from siren_export.graph.weights import Weight
from siren_export.sources.weights import BLOCK

from .edit import Linear, add_weight, before, drop_unread, linears
from .eight_bits import round_at
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
        name = linear.matrix_name
        _dequantize(graph, linear, _PerChannel(graph.weights[name], options.moments(name)))


def quantize_for_rtx_int4(graph: GuardGraph, options: Options) -> None:
    """Put the matrix of every linear in 4 bits; pooling and the head stay as they are.

    Sensitive matrices have 8 bits, but for those that keep the blocks that the checkpoint has. One
    whose inputs are no whole blocks, or with an odd number of outputs, stays as it is.
    """
    for linear in linears(graph):
        source = graph.weights[linear.matrix_name]
        moments = options.moments(linear.matrix_name)
        rows, columns = source.shape
        if carries_over(source):
            _dequantize(graph, linear, _PerBlock(source, BLOCK, _as_stored))
            graph.carried_over.add(linear.matrix_name)
        elif linear.matrix_name in options.wider:
            _dequantize(graph, linear, _PerChannel(source, moments))
        elif rows % _BLOCK == 0 and columns % 2 == 0:
            _dequantize(graph, linear, _PerBlock(source, _BLOCK, partial(_rounded, moments)))


def carries_over(matrix: Weight) -> bool:
    """Whether a matrix keeps its blocks: those of 4 bits without minimums, with even outputs."""
    stored = matrix.stored
    symmetric = stored is not None and stored.bits == 4 and not stored.has_minimums
    return symmetric and matrix.shape[1] % 2 == 0


@dataclass(frozen=True)
class _PerChannel:
    """A matrix [in, out] as int8, and scales [out]; both made when written.

    `moments` are of its inputs, by which it is rounded; None rounds to nearest.
    """

    source: Weight
    moments: np.ndarray | None
    dtype = ir.DataType.INT8

    @property
    def scales_shape(self) -> tuple[int, ...]:
        return self.source.shape[1:]

    @property
    def attributes(self) -> dict[str, Any]:
        return {"axis": 1}

    def values(self) -> Iterator[np.ndarray]:
        yield round_at(*self._read(), self.moments, _in_int8)

    def scales(self) -> Iterator[np.ndarray]:
        yield self._read()[1].astype(self.source.dtype.numpy())

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        """The scales are rounded to the dtype they are stored in, to add none of its error."""
        matrix = np.concatenate(list(self.source.blocks())).astype(np.float32)
        stored = self.source.dtype.numpy()
        scales = (np.abs(matrix).max(axis=0) / _LARGEST_INT8).astype(stored)
        return matrix, np.maximum(scales, np.finfo(stored).tiny).astype(np.float32)


def _in_int8(values: np.ndarray, scale: np.ndarray, _before: np.ndarray | None) -> np.ndarray:
    rounded: np.ndarray = np.rint(values / scale).clip(-_LARGEST_INT8, _LARGEST_INT8)
    return rounded


@dataclass
class _PerBlock:
    """A matrix [in, out] as int4, two to a byte, and scales [in / block, out]."""

    source: Weight
    block: int
    make: Callable[[Weight], tuple[np.ndarray, np.ndarray]]  # integers, int8 [in, out], and scales
    dtype = ir.DataType.INT4
    _scales: np.ndarray | None = None  # left by writing the values, so as not to make them twice

    @property
    def scales_shape(self) -> tuple[int, ...]:
        rows, columns = self.source.shape
        return rows // self.block, columns

    @property
    def attributes(self) -> dict[str, Any]:
        return {"axis": 0, "block_size": self.block}

    def values(self) -> Iterator[np.ndarray]:
        integers, self._scales = self.make(self.source)
        nibbles = integers.reshape(-1).view(np.uint8) & 0xF
        yield nibbles[::2] | nibbles[1::2] << 4  # the first in the low half

    def scales(self) -> Iterator[np.ndarray]:
        if self._scales is None:
            next(self.values())
        assert self._scales is not None
        yield self._scales.astype(self.source.dtype.numpy())


def _rounded(moments: np.ndarray | None, matrix: Weight) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate(list(matrix.blocks())).astype(np.float32)
    return round_matrix(values, FOUR_BITS, moments)


def _as_stored(matrix: Weight) -> tuple[np.ndarray, np.ndarray]:
    assert matrix.stored is not None
    blocks = matrix.stored.read(slice(0, matrix.shape[1]))
    return (blocks.integers.T - np.uint8(8)).view(np.int8), blocks.scales.T


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
