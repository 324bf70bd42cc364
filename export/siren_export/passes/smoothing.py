"""Activations evened out over channels before they are rounded (SmoothQuant, arXiv 2211.10438).

    x W = (x / s) (s W)        s = max|x|^a / max|w|^(1 - a) for each input channel

A token is rounded to 8 bits by its largest channel. In a trained decoder a few channels are 10 to
3,000 times as large as the rest (arXiv 2402.17762), which then keep no bits. What divides by `s`
is folded into what makes x, and so costs nothing: the weight of a norm, or the columns of a matrix
whose product is a factor of x, as the MLP's second in `act(gate) * up`.

What a norm gives is read by the residual stream too in encoders whose norms come last, as BERT's.
There the product's input is multiplied by 1 / s, one small operator. On MiniLM that took the
features' median error, with weights rounded to nearest, from 0.0296 of their spread to 0.0225; to
0.0221 and 0.0218 with exponents of 0.5 and 0.6, by which the guard's scores gained nothing. An
input that something else makes stays as it is: those of attention's output and behind GELU took
0.0221 to 0.0215.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import GuardGraph
from siren_export.graph.weights import Weight, from_array

from .calibration import Calibration
from .edit import Linear, add_weight, after, by_input, linears

# Of SmolLM2's features the median error was 0.12 of their spread without; with exponents of 0.5,
# 0.65 and 0.8 for all inputs it was 0.053, 0.046 and 0.048.
_EXPONENT = np.float32(0.7)
_SMALLEST = np.float32(1e-4)  # of a range
_NORMS = ("RMSNormalization", "LayerNormalization")


def smooth_inputs(graph: GuardGraph, calibration: Calibration) -> dict[str, np.ndarray]:
    """Rescale weights of a float32 graph; what it computes stays the same.

    Returns:
        By the names of matrices, what their inputs are divided by then, float32 [in].
    """
    found = []
    for x, group in by_input(graph).items():
        makers = _makers(graph, x, group)
        if makers or _is_normed(x):
            found.append((makers, group, _factors(graph, group, calibration)))
    for makers, group, factors in found:  # all found before, since some scale others' matrices
        for name in makers:
            graph.weights[name] = _scaled(graph.weights[name], 1 / factors)
        if not makers:
            _divide(graph, group, factors)
        for linear in group:
            source = graph.weights[linear.matrix_name]
            graph.weights[linear.matrix_name] = _scaled(source, factors[:, None])
    return {linear.matrix_name: factors for _, group, factors in found for linear in group}


def largest_of_rows(sources: Sequence[Weight]) -> np.ndarray:
    """The largest |weight| of each input channel over all matrices, float32 [in]."""
    rows = [
        np.concatenate([np.abs(block.astype(np.float32)).max(axis=1) for block in source.blocks()])
        for source in sources
    ]
    largest: np.ndarray = np.maximum(np.max(rows, axis=0), _SMALLEST)
    return largest


def _factors(graph: GuardGraph, group: Sequence[Linear], calibration: Calibration) -> np.ndarray:
    """s [in], for all matrices that read the input."""
    largest = np.maximum(calibration[group[0].matrix_name].largest, _SMALLEST)
    weights = largest_of_rows([graph.weights[linear.matrix_name] for linear in group])
    factors: np.ndarray = largest**_EXPONENT / weights ** (1 - _EXPONENT)
    return factors


def _is_normed(x: ir.Value) -> bool:
    maker = x.producer()
    return maker is not None and maker.op_type in _NORMS


def _divide(graph: GuardGraph, group: Sequence[Linear], factors: np.ndarray) -> None:
    """Let all matrices read their input divided by `factors` [in]."""
    first = group[0]
    inverse = add_weight(graph, f"{first.matrix_name}.inverse_smoothing", from_array(1 / factors))
    place = after(graph, first.x, f"{first.name}/smooth")
    divided = place.op("Mul", first.x, inverse)
    for linear in group:
        linear.product.replace_input_with(0, divided)


def _makers(graph: GuardGraph, x: ir.Value, group: Sequence[Linear]) -> list[str]:
    """The weights whose last axis is that of the channels of `x`, each of which it is linear in.

    None where something beside `group` reads `x`, or something else makes it.
    """
    maker = x.producer()
    if maker is None or set(x.consumers()) != {linear.product for linear in group}:
        return []
    if maker.op_type in _NORMS:
        return _read_once(graph, maker.inputs[1:])
    if maker.op_type == "Mul":
        factors = {linear.addition.outputs[0]: linear for linear in linears(graph)}
        for value in maker.inputs:
            if value in factors and value.consumers() == (maker,):
                return _read_once(graph, [factors[value].matrix, factors[value].bias])
    return []


def _read_once(graph: GuardGraph, values: Sequence[ir.Value | None]) -> list[str]:
    """The names of the weights among `values`; none where a node beside these reads one."""
    present = [value for value in values if value is not None]
    alone = all(value.name in graph.weights and len(value.uses()) == 1 for value in present)
    return [str(value.name) for value in present] if alone else []


def _scaled(source: Weight, factors: np.ndarray) -> Weight:
    """A weight times `factors`, a vector over its last axis or a column over its first."""

    def blocks() -> Iterator[np.ndarray]:
        start = 0
        for block in source.blocks():
            rows = factors if factors.ndim == 1 else factors[start : start + len(block)]
            start += len(block)
            yield block * rows

    return Weight(source.dtype, source.shape, blocks)
