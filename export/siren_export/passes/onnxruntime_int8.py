"""Eight-bit matrix products: weights per output channel, activations per token, as they come.

    step = max |x| over the token's channels / 127       float32 [..., 1]
    x_q = round(x / step) + 128                          uint8
    y = (x_q - 128) W_q * scale * step + bias            int32 sums, float32 result

GELU is never below -0.1701, so what it gives is quantized from there up, with all 255 steps above:

    step = (max x + 0.1701) / 255
    x_q = round((x + 0.1701) / step)
    y = x_q W_q * scale * step + (bias - 0.1701 sum(W_q) * scale)

On MiniLM that took the features' relative error from 0.0405 to 0.0385, at no cost in time.

One scale for the whole tensor (DynamicQuantizeLinear) would save four small operators a product,
and would make a text's score depend on the texts beside it. It also loses accuracy: a token with
a massive activation (arXiv 2402.17762) costs the others theirs. On MiniLM it doubled the mean
score difference, 0.0090 against 0.0044.

The integer sums are exact on every machine. CPUs with AVX2 or AVX-512 but no VNNI add the products
of two neighbouring inputs in 16 bits, which saturate: 255 (w_0 + w_1) > 32767. So each channel's
scale keeps the weights of a pair from adding up to more than 128. That makes steps a third wider
than the largest weight alone would, and weights round far better than activations anyway: on
MiniLM the features' relative error went from 0.0391 to 0.0401 (0.0569 with weights of 7 bits), and
scores moved no more. Asking ONNX Runtime for wide products instead (session.x64quantprecision)
took 1.3 to 1.5 times as long a product, and for Qwen3-0.6B 4 times as long to load and 170 MB more.

Queries, keys and values, which read one input, are columns of one product, with the same integers
and the same results as apart. A streamed token of SmolLM2 took 0.93 to 1.0 of the time (AMD EPYC
with AVX-512 VNNI, medians of pairs), a text of 8 to 512 tokens as long. The MLP's gate and up are
apart: of longer texts, to copy their columns apart again costs what one product less saves.

The head (Gemm) and pooling, whose operands are both computed, stay in float32.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GuardGraph
from siren_export.graph.weights import Weight, computed

from .edit import CONTRIB, Linear, Place, add_weight, after, before, by_input, linears, replace
from .eight_bits import round_channels
from .options import Moments, Options
from .rounding import Rounded
from .smoothing import BOTH, rescale_inputs

_LEVELS = 127
_ZERO_POINT = 128
_GELU_SHIFT, _GELU_LEVELS = 0.1701, 255
_UINT8 = ir.DataType.UINT8
_TOGETHER = ("query", "key", "value")


@dataclass(frozen=True)
class _Activation:
    """uint8 values [..., in] and the step of each token, float32 [..., 1].

    They stand for (values - zero_point) step - shift.
    """

    values: ir.Value
    step: ir.Value
    zero_point: int
    shift: float


def quantize_for_onnxruntime_int8(graph: GuardGraph, options: Options) -> None:
    """Rewrite every product with a constant matrix. Products of one input share its 8 bits.

    The inputs of all agree in every dimension but the channels.
    """
    options = rescale_inputs(graph, options, BOTH, divides=True)
    quantizer = _Quantizer(graph)
    for group in _products(graph, options.keep_float):
        name = group[0].matrix_name  # all read one input, so what is known of it is the same
        sources = [graph.weights[linear.matrix_name] for linear in group]
        make = partial(_per_channel, sources, options.moments(name))
        _replace(graph, group, quantizer.activation(group[0]), Rounded(make))


def _products(graph: GuardGraph, keep_float: Set[str]) -> Iterator[list[Linear]]:
    """The linears of each product, in order: queries, keys and values of an input together."""
    for linear in linears(graph):
        group = [linear]
        if linear.role in _TOGETHER:
            group = [one for one in by_input(graph)[linear.x] if one.role in _TOGETHER]
        if linear.matrix_name not in keep_float:
            yield [one for one in group if one.matrix_name not in keep_float]


@dataclass
class _Quantizer:
    """Quantizes the inputs of products, each once."""

    graph: GuardGraph
    _done: dict[ir.Value, _Activation] = field(default_factory=dict)
    _middle: ir.Value | None = None  # 128 for every token

    def activation(self, linear: Linear) -> _Activation:
        """The product's input in 8 bits."""
        if linear.x not in self._done:
            producer = linear.x.producer()
            gelu = producer is not None and producer.op_type == "Gelu"
            make = self._from_gelu if gelu else self._symmetric
            channels = self.graph.weights[linear.matrix_name].shape[0]
            r = after(self.graph, linear.x, f"{linear.name}/quantize")
            self._done[linear.x] = make(r, linear.x, channels)
        return self._done[linear.x]

    def _symmetric(self, r: Place, x: ir.Value, channels: int) -> _Activation:
        step = _step(r, r.op("Abs", x), _LEVELS)
        if self._middle is None:
            tokens = r.op("Shape", step, name="zero_points/Shape")
            middle = r.const(_ZERO_POINT, _UINT8)
            self._middle = r.op("Expand", middle, tokens, name="zero_points")
        return _Activation(_quantize(r, channels, x, step, self._middle), step, _ZERO_POINT, 0.0)

    def _from_gelu(self, r: Place, x: ir.Value, channels: int) -> _Activation:
        shifted = r.op("Add", x, r.const(_GELU_SHIFT, FLOAT))
        step = _step(r, shifted, _GELU_LEVELS)
        return _Activation(_quantize(r, channels, shifted, step), step, 0, _GELU_SHIFT)


def _step(r: Place, values: ir.Value, levels: int) -> ir.Value:
    """The largest of each token's values over the levels."""
    peak = r.op("ReduceMax", values, r.const([-1]))
    return r.op("Mul", peak, r.const(1 / levels, FLOAT), name=f"{r.scope}/step")


def _quantize(r: Place, channels: int, *inputs: ir.Value) -> ir.Value:
    """Round in blocks of a token, which is one operator where Div and a fixed scale are two.

    A token of zeros has a step of zero, and so its products are zero whatever it rounds to.

    Args:
        inputs: values, steps, and zero points where they are not zero.
    """
    return r.op("QuantizeLinear", *inputs, name=r.scope, axis=-1, block_size=channels)


def _replace(graph: GuardGraph, group: Sequence[Linear], x: _Activation, matrix: Rounded) -> None:
    """Let one product stand in for those of `group`.

    What reads a shifted input stands alone: queries, keys and values read no GELU.

    Args:
        matrix: [in, out of all of them].
    """
    shapes = [graph.weights[linear.matrix_name].shape for linear in group]
    widths = [width for _, width in shapes]
    label, name = _names(group)
    values = Weight(ir.DataType.INT8, (shapes[0][0], sum(widths)), matrix.integers)
    scales = Weight(FLOAT, (sum(widths),), matrix.scales)
    r = before(graph, group[0].product, label)
    product = r.op(
        "MatMulIntegerToFloat",
        x.values,
        add_weight(graph, f"{name}.int8", values),
        r.const(1.0, FLOAT),
        add_weight(graph, f"{name}.scale", scales),
        r.const(x.zero_point, _UINT8),
        domain=CONTRIB,
    )
    y = r.op("Mul", product, x.step, name=f"{label}/rescale")
    if len(group) > 1:
        assert not x.shift
        for linear, part in zip(group, r.split(y, widths), strict=True):
            replace(graph, [linear.product], part)
        return
    (linear,) = group
    old = [linear.product]
    if x.shift:
        bias = None if linear.bias is None else graph.weights[str(linear.bias.name)]
        shifted = computed(FLOAT, scales.shape, partial(_shifted, matrix, bias, x.shift))
        new_bias = add_weight(graph, f"{name}.bias", shifted)
        y = r.op("Add", y, new_bias, name=f"{label}/add_bias")
        old += [] if linear.bias is None else [linear.addition]
    replace(graph, old, y)


def _names(group: Sequence[Linear]) -> tuple[str, str]:
    """Of a product, as `self_attn/q_proj+k_proj+v_proj`, and of its matrix."""
    if len(group) == 1:
        return group[0].name, group[0].matrix_name
    scope, _, _ = group[0].name.rpartition("/")
    label = f"{scope}/" + "+".join(linear.name.rpartition("/")[2] for linear in group)
    return label, f"{label}/weight"


def _per_channel(sources: Sequence[Weight], moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [in, out] side by side in 8 bits, with one scale for each output channel.

    `moments` are of their input, by which they are rounded; None rounds to nearest.
    """
    known = moments()
    matrices = (np.concatenate(list(source.blocks())) for source in sources)
    rounded = [round_channels(matrix, known) for matrix in matrices]
    integers, scales = (np.concatenate(parts, axis=-1) for parts in zip(*rounded, strict=True))
    return integers, scales


def _shifted(matrix: Rounded, bias: Weight | None, shift: float) -> np.ndarray:
    """The bias without what `shift` in every input adds to the product."""
    integers, scales = matrix.make()
    added = np.float32(shift) * integers.sum(axis=0, dtype=np.int64) * scales
    held = np.float32(0) if bias is None else np.concatenate(list(bias.blocks()))
    shifted: np.ndarray = (held - added).astype(np.float32)
    return shifted
