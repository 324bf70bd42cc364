"""Matrices that a GGUF file stores in blocks of 32 integers: taken apart, and not dequantized.

The layouts are ggml's (`ggml-common.h`). Bytes of 4-bit values hold the value i of a half in their
low bits and the value i of the other half in their high ones. In Q4_K eight blocks share two
float16 factors, of 6-bit scales and of 6-bit minimums.
"""

import numpy as np
from gguf import GGMLQuantizationType

from .weights import BLOCK, Array, Blocks

# Type -> bits, and whether its blocks have minimums.
LAYOUTS = {"Q4_0": (4, False), "Q4_1": (4, True), "Q4_K": (4, True), "Q8_0": (8, False)}
_HALF = 2  # bytes of a float16


def unpack(data: Array, stored: GGMLQuantizationType) -> Blocks:
    """Take stored rows apart.

    Args:
        data: uint8 [rows, bytes], of a type of `LAYOUTS`.
    """
    rows = len(data)
    if stored == GGMLQuantizationType.Q4_K:
        return _q4_k(data.reshape(-1, 144), rows)
    minimums = None
    if stored == GGMLQuantizationType.Q8_0:
        blocks = data.reshape(-1, _HALF + BLOCK)
        integers = blocks[:, _HALF:] ^ np.uint8(128)  # int8 as uint8 with 128 for a middle
    elif stored == GGMLQuantizationType.Q4_0:
        blocks = data.reshape(-1, _HALF + BLOCK // 2)
        integers = _nibbles(blocks[:, _HALF:])
    else:
        blocks = data.reshape(-1, 2 * _HALF + BLOCK // 2)
        integers = _nibbles(blocks[:, 2 * _HALF :])
        minimums = _halves(blocks, _HALF).reshape(rows, -1)
    return Blocks(integers.reshape(rows, -1), _halves(blocks, 0).reshape(rows, -1), minimums)


def _q4_k(blocks: Array, rows: int) -> Blocks:
    packed = blocks[:, 2 * _HALF : 2 * _HALF + 12]
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, high & 15 | (low >> 6) << 4], axis=1)
    minimums = np.concatenate([middle & 63, high >> 4 | (middle >> 6) << 4], axis=1)
    # 128 bytes are four times 32, each of which holds two blocks.
    integers = _nibbles(blocks[:, 2 * _HALF + 12 :].reshape(-1, BLOCK))
    return Blocks(
        integers.reshape(rows, -1),
        (_halves(blocks, 0) * scales).reshape(rows, -1),
        (-_halves(blocks, _HALF) * minimums).reshape(rows, -1),
    )


def _halves(blocks: Array, start: int) -> Array:
    """A float16 of every block, as float32 [blocks, 1]."""
    halves = np.ascontiguousarray(blocks[:, start : start + _HALF]).view(np.float16)
    return halves.astype(np.float32)


def _nibbles(packed: Array) -> Array:
    """Bytes [n, size] as the values in their low bits, then those in their high ones."""
    nibbles: Array = np.concatenate([packed & 15, packed >> 4], axis=1)
    return nibbles
