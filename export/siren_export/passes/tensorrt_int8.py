"""Linears in 8 bits for TensorRT: QuantizeLinear and DequantizeLinear around each MatMul.

    y = dq(q(x / s)) dq(q(s W))

Weights are symmetric for each output channel, activations for the tensor, with fixed scales from
calibration. SmoothQuant (arXiv 2211.10438) moves outlier channels from activations to weights:
s = max|x|^a / max|w|^(1-a) for each input channel. Of the exponents a from 0.5 to 1, 0.8 had the
least errors of MiniLM's products, half those of 0.5 in the mean, over texts that calibration did
not see.

The MLP's second matrix keeps the compute dtype: its inputs have outliers that no fixed scale of
the tensor holds. With it the default guard kept 91 % of its verdicts, without it over 99 %.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import GuardGraph
from siren_export.graph.roles import Role
from siren_export.graph.weights import Weight, from_array

from .edit import Linear, add_weight, before, by_input, drop_unread
from .options import Options
from .smoothing import largest_of_rows

_EXPONENT = np.float32(0.8)
_SMOOTHING = (1e-3, 1e3)  # what float16 holds, and its inverse
_KEPT: Role = "mlp_down"
_SMALLEST = np.float32(1e-4)  # of a range; a smaller one's scale would vanish in float16


@dataclass(frozen=True)
class _Format:
    """Eight bits of a kind, and the largest value that they hold."""

    dtype: ir.DataType
    largest: np.float32

    def round(self, values: np.ndarray) -> np.ndarray:
        """The nearest values of the format, those beyond its largest at it."""
        limited = np.clip(values, -self.largest, self.largest)
        if self.dtype == ir.DataType.INT8:
            limited = np.rint(limited)
        rounded: np.ndarray = limited.astype(self.dtype.numpy())
        return rounded


_INT8 = _Format(ir.DataType.INT8, np.float32(127))
_FLOAT8 = _Format(ir.DataType.FLOAT8E4M3FN, np.float32(448))  # FP8 formats, arXiv 2209.05433


def quantize_for_tensorrt_int8(graph: GuardGraph, options: Options) -> None:
    """Quantize the linears but the MLP's second, weights and activations.

    Pooling and head stay in float32.
    """
    _quantize_linears(graph, options, _INT8)


def quantize_for_tensorrt_fp8(graph: GuardGraph, options: Options) -> None:
    """As `quantize_for_tensorrt_int8`, in float8."""
    _quantize_linears(graph, options, _FLOAT8)


def _quantize_linears(graph: GuardGraph, options: Options, format: _Format) -> None:
    if options.calibration is None:
        raise AssertionError("scales of activations are made from calibration")
    for readers in by_input(graph).values():
        group = [linear for linear in readers if linear.role != _KEPT]
        if not group:
            continue
        sources = [graph.weights[linear.matrix_name] for linear in group]
        largest = np.maximum(options.calibration[group[0].matrix_name].largest, _SMALLEST)
        dtype = sources[0].dtype.numpy()
        weights = largest_of_rows(sources)
        smooth = np.clip(largest**_EXPONENT / weights ** (1 - _EXPONENT), *_SMOOTHING)
        inverse = (1 / smooth).astype(dtype)
        smooth = 1 / inverse.astype(np.float32)  # of what is stored, so that the two cancel
        activations = _activations(graph, group[0], inverse, (largest / smooth).max(), format)
        for linear, source in zip(group, sources, strict=True):
            _quantize(graph, linear, activations, _Smoothed(source, smooth, format))


def _activations(
    graph: GuardGraph, linear: Linear, inverse: np.ndarray, largest: float, format: _Format
) -> ir.Value:
    """The linear's input times the inverse smoothing, through 8 bits up to `largest` and back."""
    name = str(linear.product.name)
    r = before(graph, linear.product, f"{name}/input")
    step = np.array(largest / format.largest, inverse.dtype)
    scale = add_weight(graph, f"{name}/scale", from_array(step))
    zero = r.const(0, format.dtype)
    factors = add_weight(graph, f"{name}/inverse_smoothing", from_array(inverse))
    quantized = r.op("QuantizeLinear", r.op("Mul", linear.x, factors), scale, zero)
    return r.op("DequantizeLinear", quantized, scale, zero)


@dataclass(frozen=True)
class _Smoothed:
    """A matrix [in, out] with its rows times the smoothing, in 8 bits; read when written."""

    source: Weight
    smooth: np.ndarray
    format: _Format

    def values(self) -> Iterator[np.ndarray]:
        matrix, scales = self._read()
        yield self.format.round(matrix / scales)

    def scales(self) -> Iterator[np.ndarray]:
        yield self._read()[1].astype(self.source.dtype.numpy())

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.concatenate(list(self.source.blocks())).astype(np.float32)
        matrix = matrix * self.smooth[:, None]
        stored = self.source.dtype.numpy()
        scales = np.maximum(np.abs(matrix).max(axis=0), _SMALLEST) / self.format.largest
        return matrix, scales.astype(stored).astype(np.float32)


def _quantize(graph: GuardGraph, linear: Linear, activations: ir.Value, q: _Smoothed) -> None:
    name, columns = linear.matrix_name, q.source.shape[1]
    stored = Weight(q.format.dtype, q.source.shape, q.values)
    values = add_weight(graph, f"{name}.{q.format.dtype.name.lower()}", stored)
    scales = add_weight(graph, f"{name}.scale", Weight(q.source.dtype, (columns,), q.scales))
    r = before(graph, linear.product, f"{linear.product.name}/weight")
    restored = r.op("DequantizeLinear", values, scales, axis=1)
    linear.product.replace_input_with(0, activations)
    linear.product.replace_input_with(1, restored)
    drop_unread(graph, [linear.matrix])
