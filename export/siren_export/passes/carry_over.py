"""Matrices that the checkpoint has in blocks of few bits stay what they are (MatMulNBits).

    4 bits, W = (integer - 8) scale                y = x (integer - 8) scale
    4 bits, W = integer scale + minimum            y = x integer scale + sums(x) minimum
    8 bits, W = (16 high + low - 128) scale        y = x (high - 8) (16 scale) + x low scale

The products with 4-bit integers are MatMulNBits, whose integers are from 8 up, or from zero where
it is given zero points. `sums` adds up the inputs of each block of 32, once for all products of one
input, and its product has a thirty-second of the work. MatMulNBits takes zero points of the scales'
type too, -minimum / scale, but then dequantizes the whole matrix at every run (3.1 ms for a token
and a matrix of 576 x 1,536; 0.1 ms as it is here), and they do not exist where a scale is zero.

Activations stay in float32 (accuracy level 1), so that the scores are those of the float32 engine:
on 304 texts SmolLM2's Q4_1 file moved them by 9e-7 in the mean and 3.4e-5 at most. Eight bits for
activations (level 4) moved them by 4e-3 and 0.14, took a third of the time for one token, and no
less for a text. MatMulNBits has 8-bit integers at that level alone without dequantizing the whole
matrix, hence the two halves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GuardGraph
from siren_export.graph.weights import BLOCK_BYTES, Stored, Weight
from siren_export.sources.weights import BLOCK, Blocks

from .edit import CONTRIB, Linear, Place, add_weight, after, before, replace

_ACCURACY_LEVEL = 1

_Part = Callable[[Blocks], np.ndarray]


def carries_over(matrix: Weight) -> bool:
    """Whether a matrix keeps its blocks: all that the checkpoint has in blocks of few bits do."""
    return matrix.stored is not None


@dataclass
class CarriedOver:
    """Replaces products with matrices that are stored in blocks."""

    graph: GuardGraph
    _sums: dict[ir.Value, ir.Value] = field(default_factory=dict)  # of inputs, by them

    def replace(self, linear: Linear) -> None:
        """Rewrite a product, its bias left where it is; its matrix has `stored`."""
        weight = self.graph.weights[linear.matrix_name]
        assert weight.stored is not None
        stored, name = weight.stored, linear.matrix_name
        r = before(self.graph, linear.product, linear.name)
        matrix = _Matrix(self.graph, stored, *weight.shape)
        if stored.bits == 8:
            high = matrix.times(r, linear.x, f"{name}.high", _high, _scales_of_high)
            low = matrix.times(r, linear.x, f"{name}.low", _low, _scales, from_zero=True)
            product = r.op("Add", high, low, name=f"{r.scope}/add_halves")
        elif stored.has_minimums:
            product = matrix.times(r, linear.x, name, _integers, _scales, from_zero=True)
            sums = self._block_sums(linear.x, matrix.blocks)
            shift = r.op("MatMul", sums, matrix.minimums(name), name=f"{r.scope}/minimums")
            product = r.op("Add", product, shift, name=f"{r.scope}/add_minimums")
        else:
            product = matrix.times(r, linear.x, name, _integers, _scales)
        self.graph.carried_over.add(name)
        replace(self.graph, [linear.product], product)

    def _block_sums(self, x: ir.Value, blocks: int) -> ir.Value:
        """The sums of the inputs of each block: float32 [..., in / BLOCK]."""
        if x not in self._sums:
            r = after(self.graph, x, f"{x.name}/block_sums")
            parts = r.op("Reshape", x, r.const([0, 0, blocks, BLOCK]))
            self._sums[x] = r.op("ReduceSum", parts, r.const([-1]), keepdims=0)
        return self._sums[x]


@dataclass(frozen=True)
class _Matrix:
    """A stored matrix, whose parts are read anew for each weight, some rows at a time."""

    graph: GuardGraph
    stored: Stored
    channels_in: int
    channels_out: int

    @property
    def blocks(self) -> int:
        """Of each output channel."""
        return self.channels_in // BLOCK

    def times(
        self,
        r: Place,
        x: ir.Value,
        name: str,
        integers: _Part,
        scales: _Part,
        *,
        from_zero: bool = False,
    ) -> ir.Value:
        """x times 4-bit integers times scales; the integers are less 8, or from zero up."""

        def pairs(part: Blocks) -> np.ndarray:
            values = integers(part)
            packed: np.ndarray = values[:, ::2] | values[:, 1::2] << 4
            return packed

        shape = (self.channels_out, self.blocks)
        inputs = [
            x,
            self._add(f"{name}.int4", ir.DataType.UINT8, (*shape, BLOCK // 2), pairs),
            self._add(f"{name}.scale", FLOAT, shape, scales),
        ]
        if from_zero:
            bytes_of_row = -(-self.blocks // 2)
            zeros = np.zeros((self.channels_out, bytes_of_row), np.uint8)
            weight = Weight(ir.DataType.UINT8, zeros.shape, lambda: iter([zeros]))
            inputs.append(add_weight(self.graph, f"{name}.zero_point", weight))
        return r.op(
            "MatMulNBits",
            *inputs,
            domain=CONTRIB,
            K=self.channels_in,
            N=self.channels_out,
            bits=4,
            block_size=BLOCK,
            accuracy_level=_ACCURACY_LEVEL,
        )

    def minimums(self, name: str) -> ir.Value:
        """float32 [blocks, out]."""

        def columns() -> Iterator[np.ndarray]:
            yield np.ascontiguousarray(np.concatenate([*map(_minimums, self._parts())]).T)

        weight = Weight(FLOAT, (self.blocks, self.channels_out), columns)
        return add_weight(self.graph, f"{name}.minimum", weight)

    def _add(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], part: _Part) -> ir.Value:
        return add_weight(self.graph, name, Weight(dtype, shape, lambda: map(part, self._parts())))

    def _parts(self) -> Iterator[Blocks]:
        rows = max(1, BLOCK_BYTES // (self.channels_in * 4))
        for start in range(0, self.channels_out, rows):
            yield self.stored.read(slice(start, min(start + rows, self.channels_out)))


def _integers(part: Blocks) -> np.ndarray:
    return part.integers


def _scales(part: Blocks) -> np.ndarray:
    return part.scales


def _minimums(part: Blocks) -> np.ndarray:
    assert part.minimums is not None
    return part.minimums


def _high(part: Blocks) -> np.ndarray:
    high: np.ndarray = part.integers >> 4
    return high


def _low(part: Blocks) -> np.ndarray:
    low: np.ndarray = part.integers & 15
    return low


def _scales_of_high(part: Blocks) -> np.ndarray:
    scales: np.ndarray = np.float32(16) * part.scales
    return scales
