"""Matrices in 8 or 4 bits, products in the compute dtype: DequantizeLinear before each MatMul.

The form in which TensorRT-RTX takes quantized weights. Symmetric: int8 with a scale for each output
channel; int4 with a scale for each block of inputs of an output channel.

A matrix that the checkpoint has in 4-bit blocks without minimums (Q4_0) keeps integers and scales,
half of which are negative: TensorRT-RTX 1.7.1 takes negative scales, and zero, of int4, and refuses
both of int8. Scales of float16 stay what they are. up_proj's, which are authored times 2^-4, lose
bits where they were under 2^-10, and are off by 2^-25 at most.
"""

from collections.abc import Callable
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
from .options import Moments, Options
from .rounding import Rounded
from .smoothing import WEIGHTS, rescale_inputs

# Inputs that share an int4 scale. Of MiniLM's verdicts on 1,135 validation rows 16 kept 99.0 %, 32
# 98.0 %; it costs half a bit more a weight.
_BLOCK = 16
FOUR_BITS = Grid(_BLOCK, signed=False, stored=np.float16)
_LARGEST_INT8 = 127


def quantize_for_rtx_int8(graph: GuardGraph, options: Options) -> None:
    """Put the matrix of every linear in 8 bits; pooling and the head stay as they are."""
    options = rescale_inputs(graph, options, WEIGHTS)
    for linear in linears(graph):
        _to_8_bits(graph, linear, options.moments(linear.matrix_name))


def quantize_for_rtx_int4(graph: GuardGraph, options: Options) -> None:
    """Put the matrix of every linear in 4 bits; pooling and the head stay as they are.

    Sensitive matrices have 8 bits, but for those that keep the blocks that the checkpoint has. One
    whose inputs are no whole blocks, or with an odd number of outputs, stays as it is.
    """
    options = rescale_inputs(graph, options, WEIGHTS, carries_over)
    for linear in linears(graph):
        source = graph.weights[linear.matrix_name]
        moments = options.moments(linear.matrix_name)
        rows, columns = source.shape
        if carries_over(source):
            _to_4_bits(graph, linear, BLOCK, _as_stored)
            graph.carried_over.add(linear.matrix_name)
        elif linear.matrix_name in options.wider:
            _to_8_bits(graph, linear, moments)
        elif rows % _BLOCK == 0 and columns % 2 == 0:
            _to_4_bits(graph, linear, _BLOCK, partial(_rounded, moments))


def carries_over(matrix: Weight) -> bool:
    """Whether a matrix keeps its blocks: those of 4 bits without minimums, with even outputs."""
    stored = matrix.stored
    symmetric = stored is not None and stored.bits == 4 and not stored.has_minimums
    return symmetric and matrix.shape[1] % 2 == 0


def _to_8_bits(graph: GuardGraph, linear: Linear, moments: Moments) -> None:
    """A matrix [in, out] as int8, and scales [out].

    `moments` are of its inputs, by which it is rounded; None rounds to nearest.
    """
    source = graph.weights[linear.matrix_name]
    matrix = Rounded(partial(_per_channel, source, moments))
    values = Weight(ir.DataType.INT8, source.shape, matrix.integers)
    scales = Weight(source.dtype, source.shape[1:], matrix.scales)
    _dequantize(graph, linear, values, scales, axis=1)


def _to_4_bits(
    graph: GuardGraph,
    linear: Linear,
    block: int,
    make: Callable[[Weight], tuple[np.ndarray, np.ndarray]],
) -> None:
    """A matrix [in, out] as int4, two to a byte, and scales [in / block, out].

    `make` gives integers, int8 [in, out], and scales.
    """
    source = graph.weights[linear.matrix_name]
    rows, columns = source.shape
    matrix = Rounded(partial(_packed, source, make))
    values = Weight(ir.DataType.INT4, source.shape, matrix.integers)
    scales = Weight(source.dtype, (rows // block, columns), matrix.scales)
    _dequantize(graph, linear, values, scales, axis=0, block_size=block)


def _per_channel(source: Weight, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """The scales are rounded to the dtype they are stored in, to add none of its error."""
    matrix = np.concatenate(list(source.blocks())).astype(np.float32)
    stored = source.dtype.numpy()
    scales = (np.abs(matrix).max(axis=0) / _LARGEST_INT8).astype(stored)
    scales = np.maximum(scales, np.finfo(stored).tiny)
    return round_at(matrix, scales.astype(np.float32), moments(), _in_int8), scales


def _in_int8(values: np.ndarray, scale: np.ndarray, _before: np.ndarray | None) -> np.ndarray:
    rounded: np.ndarray = np.rint(values / scale).clip(-_LARGEST_INT8, _LARGEST_INT8)
    return rounded


def _packed(
    source: Weight, make: Callable[[Weight], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """What `make` gives as it is stored: two integers to a byte, the first in the low half."""
    integers, scales = make(source)
    nibbles = integers.reshape(-1).view(np.uint8) & 0xF
    return nibbles[::2] | nibbles[1::2] << 4, scales.astype(source.dtype.numpy())


def _rounded(moments: Moments, matrix: Weight) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate(list(matrix.blocks())).astype(np.float32)
    return round_matrix(values, FOUR_BITS, moments())


def _as_stored(matrix: Weight) -> tuple[np.ndarray, np.ndarray]:
    assert matrix.stored is not None
    blocks = matrix.stored.read(slice(0, matrix.shape[1]))
    return (blocks.integers.T - np.uint8(8)).view(np.int8), blocks.scales.T


def _dequantize(
    graph: GuardGraph, linear: Linear, values: Weight, scales: Weight, **attributes: Any
) -> None:
    name = linear.matrix_name
    restored = before(graph, linear.product, linear.name).op(
        "DequantizeLinear",
        add_weight(graph, f"{name}.{values.dtype.name.lower()}", values),
        add_weight(graph, f"{name}.scale", scales),
        **attributes,
    )
    linear.product.replace_input_with(1, restored)
    drop_unread(graph, [linear.matrix])
