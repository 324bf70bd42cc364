"""Four-bit weights (MatMulNBits): each output channel has one scale for every 32 inputs.

    W = (q - 8) * scale        q in 0..15, the block's largest magnitude near 0

Matrices that 4 bits would harm most (`sensitive`) have 8, which cost their bytes and no time: on a
CPU with AVX-512 a product takes as long, or a tenth less.

Activations are quantized to 8 bits inside the operator, per token and block (accuracy level 4):
level 0, which computes in float32, took 4 times as long for one token and no less for many.
Of the block sizes 32 is the most accurate of those that are fast: 16 took 1.5 times as long.
"""

from functools import partial

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GuardGraph
from siren_export.graph.weights import Weight

from .carry_over import CarriedOver, carries_over
from .edit import CONTRIB, Linear, add_weight, before, linears, replace
from .four_bits import Grid, round_matrix
from .options import Moments, Options
from .rounding import Rounded
from .smoothing import WEIGHTS, rescale_inputs

_BLOCK = 32
FOUR_BITS = Grid(_BLOCK, signed=True, stored=np.float32)
_EIGHT_BITS = Grid(_BLOCK, signed=True, stored=np.float32, bits=8)
_ACCURACY_LEVEL = 4


def quantize_for_onnxruntime_int4(graph: GuardGraph, options: Options) -> None:
    """Rewrite every product with a constant matrix, its bias included.

    A matrix that the checkpoint has in blocks keeps them.
    """
    options = rescale_inputs(graph, options, WEIGHTS, carries_over)
    carried_over = CarriedOver(graph)
    for linear in linears(graph):
        if linear.matrix_name in options.keep_float:
            continue
        if carries_over(graph.weights[linear.matrix_name]):
            carried_over.replace(linear)
        else:
            wide = linear.matrix_name in options.wider
            grid = _EIGHT_BITS if wide else FOUR_BITS
            _replace(graph, linear, grid, options.moments(linear.matrix_name))


def _replace(graph: GuardGraph, linear: Linear, grid: Grid, moments: Moments) -> None:
    source = graph.weights[linear.matrix_name]
    channels_in, channels_out = source.shape
    blocks = -(-channels_in // _BLOCK)
    matrix = Rounded(partial(_per_block, source, grid, moments))
    stored = (channels_out, blocks, _BLOCK * grid.bits // 8)
    values = Weight(ir.DataType.UINT8, stored, matrix.integers)
    scales = Weight(FLOAT, (channels_out, blocks), matrix.scales)
    inputs: list[ir.Value | None] = [
        linear.x,
        add_weight(graph, f"{linear.matrix_name}.int{grid.bits}", values),
        add_weight(graph, f"{linear.matrix_name}.scale", scales),
    ]
    old = [linear.product]
    if linear.bias is not None:
        inputs += [None, None, linear.bias]  # no zero points, no order of the inputs
        old.append(linear.addition)
    product = before(graph, linear.product, linear.name).op(
        "MatMulNBits",
        *inputs,
        domain=CONTRIB,
        K=channels_in,
        N=channels_out,
        bits=grid.bits,
        block_size=_BLOCK,
        accuracy_level=_ACCURACY_LEVEL,
    )
    replace(graph, old, product)


def _per_block(source: Weight, grid: Grid, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [in, out] as uint8 [out, blocks, block], those of 4 bits two in a byte, and scales.

    The scales are float32 [out, blocks].
    """
    matrix = np.concatenate(list(source.blocks()))
    matrix = np.pad(matrix, ((0, -len(matrix) % _BLOCK), (0, 0)))
    integers, scales = round_matrix(matrix, grid, moments())
    values = (integers.T.astype(np.int16) - grid.lowest).astype(np.uint8)
    values = values.reshape(matrix.shape[1], -1, _BLOCK)
    if grid.bits == 4:
        values = values[:, :, ::2] | values[:, :, 1::2] << 4
    return values, np.ascontiguousarray(scales.T)
