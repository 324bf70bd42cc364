"""What a precision means for a target, in one table: a row for each pair of the two.

Everything that depends on the pair is in its row, or in the reason why there is none.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GuardGraph
from siren_export.graph.roles import Role
from siren_export.graph.weights import Weight
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import InputError

from .calibration import Calibration
from .carry_over import carries_over as onnxruntime_carries_over
from .decompose_attention import decompose_attention, decompose_softcap
from .decompose_gelu import decompose_gelu
from .decompose_rms_norm import decompose_rms_norm
from .decompose_rotary import decompose_rotary
from .edit import import_contrib
from .four_bits import Grid
from .onnxruntime_attention import fuse_long_attention
from .onnxruntime_embedding import quantize_embedding
from .onnxruntime_int4 import FOUR_BITS as ONNXRUNTIME_FOUR_BITS
from .onnxruntime_int4 import quantize_for_onnxruntime_int4
from .onnxruntime_int8 import quantize_for_onnxruntime_int8
from .options import Options
from .rtx_weights import FOUR_BITS as RTX_FOUR_BITS
from .rtx_weights import carries_over as rtx_carries_over
from .rtx_weights import quantize_for_rtx_int4, quantize_for_rtx_int8
from .sensitive import ENCODER_EIGHT_BITS
from .tensorrt10 import check_operators, set_tensorrt10_opset
from .tensorrt_int8 import quantize_for_tensorrt_fp8, quantize_for_tensorrt_int8

_FLOAT16, _BFLOAT16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


@dataclass(frozen=True)
class Bound:
    """How far scores may lie from the reference's: the largest |difference|, or the mean one."""

    value: float
    of: Literal["max", "mean"]


# Quantization moves a text that lies where the head is steep by any amount (0.23 on MiniLM in 8
# bits, no verdict changed), so that the largest says nothing about the engine. MiniLM's means:
# 0.011 in 8 bits and 0.016 in 4.
_FP32 = Bound(1e-4, "max")
_FP16 = Bound(5e-3, "max")
_BF16 = Bound(2e-2, "mean")
_FP8 = Bound(5e-2, "mean")
_INT8 = Bound(2e-2, "mean")
_INT4 = Bound(5e-2, "mean")

Measured = Literal["none", "ranges", "moments"]
Quantize = Callable[[GuardGraph, Options], None]
Rewrite = Callable[[GuardGraph], None]


@dataclass(frozen=True)
class Row:
    """What a precision means for a target.

    Attributes:
        compute: the dtype of matrix products and attention that graphs are authored in. What is
            not quantized stays in float32 for ONNX Runtime, and in float16 for TensorRT.
        bound: of an export's scores.
        quantize: the pass that quantizes, which comes first.
        rewrites: the passes after it, in order.
        calibration: what is measured of the linears' inputs on example texts before quantizing:
            their "ranges", and their second "moments" too; or nothing ("none").
        four_bits: how weights are rounded, where those of sensitive matrices get 8 bits.
        encoder_eight_bits: roles of an encoder whose matrices always count as sensitive.
        carries_over: whether a matrix keeps the blocks of few bits that the checkpoint has it in;
            None where none does.
        streams: whether a streaming graph is made too.
        keeps_float: whether single matrices can be left in float32.
        saturation_free: whether no integer product can saturate on any CPU.
        check: refuses a written graph that the target would not take.
    """

    compute: ir.DataType
    bound: Bound
    quantize: Quantize | None = None
    rewrites: tuple[Rewrite, ...] = ()
    calibration: Measured = "none"
    four_bits: Grid | None = None
    encoder_eight_bits: tuple[Role, ...] = ()
    carries_over: Callable[[Weight], bool] | None = None
    streams: bool = True
    keeps_float: bool = False
    saturation_free: bool = False
    check: Callable[[Path], None] | None = None


def _only_tensorrt(precision: Precision) -> str:
    return (
        f"precision {precision} is made for the TensorRT targets only, since ONNX Runtime's "
        "CPU has no such products; name a --target, or export with fp32, fp16, int8 or int4"
    )


def _no_int4(target: Target) -> str:
    return (
        f"precision int4 is not made for target {target}, only for onnxruntime and "
        "tensorrt-rtx; export with int8, fp16 or fp32"
    )


# ONNX Runtime takes graphs as they are authored. In 8 and 4 bits they hold its own operators.
_AUTHORED: tuple[Rewrite, ...] = (decompose_softcap,)
_OWN_OPERATORS: tuple[Rewrite, ...] = (
    *_AUTHORED,
    quantize_embedding,
    fuse_long_attention,
    import_contrib,
)
# TensorRT and TensorRT-RTX compile Attention in float16 and bfloat16 only.
_NO_ATTENTION: tuple[Rewrite, ...] = (decompose_attention,)
# TensorRT 10 of any version takes primitive operators only.
_PRIMITIVE: tuple[Rewrite, ...] = (
    decompose_attention,
    decompose_rotary,
    decompose_rms_norm,
    decompose_gelu,
    set_tensorrt10_opset,
)


def _onnxruntime(bound: Bound, quantize: Quantize, four_bits: Grid | None = None) -> Row:
    return Row(
        FLOAT,
        bound,
        quantize,
        _OWN_OPERATORS,
        calibration="moments",
        four_bits=four_bits,
        encoder_eight_bits=() if four_bits is None else ENCODER_EIGHT_BITS,
        carries_over=None if four_bits is None else onnxruntime_carries_over,
        keeps_float=True,
        saturation_free=True,
    )


def _tensorrt10(
    compute: ir.DataType, bound: Bound, quantize: Quantize | None = None, streams: bool = True
) -> Row:
    ranges: Measured = "none" if quantize is None else "ranges"
    return Row(compute, bound, quantize, _PRIMITIVE, ranges, streams=streams, check=check_operators)


# Both TensorRTs in float8, which GPUs of compute capability 8.9 and from 9.0 have.
_FLOAT8 = Row(_FLOAT16, _FP8, quantize_for_tensorrt_fp8, _AUTHORED, calibration="ranges")

TABLE: dict[tuple[Target, Precision], Row | str] = {
    ("onnxruntime", "fp32"): Row(FLOAT, _FP32, rewrites=_AUTHORED, saturation_free=True),
    ("onnxruntime", "fp16"): Row(_FLOAT16, _FP16, rewrites=_AUTHORED, saturation_free=True),
    ("onnxruntime", "bf16"): _only_tensorrt("bf16"),
    ("onnxruntime", "fp8"): _only_tensorrt("fp8"),
    ("onnxruntime", "int8"): _onnxruntime(_INT8, quantize_for_onnxruntime_int8),
    ("onnxruntime", "int4"): _onnxruntime(
        _INT4, quantize_for_onnxruntime_int4, ONNXRUNTIME_FOUR_BITS
    ),
    #
    ("tensorrt", "fp32"): Row(FLOAT, _FP32, rewrites=_NO_ATTENTION),
    ("tensorrt", "fp16"): Row(_FLOAT16, _FP16, rewrites=_AUTHORED),
    ("tensorrt", "bf16"): Row(_BFLOAT16, _BF16, rewrites=_AUTHORED, streams=False),
    ("tensorrt", "fp8"): _FLOAT8,
    ("tensorrt", "int8"): Row(
        _FLOAT16, _INT8, quantize_for_tensorrt_int8, _AUTHORED, calibration="ranges"
    ),
    ("tensorrt", "int4"): _no_int4("tensorrt"),
    #
    ("tensorrt-rtx", "fp32"): Row(FLOAT, _FP32, rewrites=_NO_ATTENTION),
    ("tensorrt-rtx", "fp16"): Row(_FLOAT16, _FP16, rewrites=_AUTHORED),
    ("tensorrt-rtx", "bf16"): Row(_BFLOAT16, _BF16, rewrites=_AUTHORED, streams=False),
    ("tensorrt-rtx", "fp8"): _FLOAT8,
    ("tensorrt-rtx", "int8"): Row(
        _FLOAT16, _INT8, quantize_for_rtx_int8, _AUTHORED, calibration="moments"
    ),
    ("tensorrt-rtx", "int4"): Row(
        _FLOAT16,
        _INT4,
        quantize_for_rtx_int4,
        _AUTHORED,
        calibration="moments",
        four_bits=RTX_FOUR_BITS,
        encoder_eight_bits=ENCODER_EIGHT_BITS,
        carries_over=rtx_carries_over,
    ),
    #
    ("tensorrt10", "fp32"): _tensorrt10(FLOAT, _FP32),
    ("tensorrt10", "fp16"): _tensorrt10(_FLOAT16, _FP16),
    ("tensorrt10", "bf16"): _tensorrt10(_BFLOAT16, _BF16, streams=False),
    ("tensorrt10", "fp8"): _tensorrt10(_FLOAT16, _FP8, quantize_for_tensorrt_fp8),
    ("tensorrt10", "int8"): _tensorrt10(_FLOAT16, _INT8, quantize_for_tensorrt_int8),
    ("tensorrt10", "int4"): _no_int4("tensorrt10"),
}


def row_of(target: Target, precision: Precision) -> Row:
    """The row of a pair.

    Raises:
        InputError: there is none; the message says why, and what to take instead.
    """
    row = TABLE[target, precision]
    if isinstance(row, str):
        raise InputError(row)
    return row


def lower(
    graph: GuardGraph,
    row: Row,
    keep_float: Set[str] = frozenset(),
    calibration: Calibration | None = None,
    wider: Set[str] = frozenset(),
) -> None:
    """Rewrite an authored graph in place for the precision and the target of `row`.

    Args:
        keep_float: names of the matrices that stay in float32, where the row keeps some.
        calibration: of the linears' inputs, as the row says; None rounds to nearest, where the
            precision can do without.
        wider: names of the matrices that get 8 bits where the row's have 4.
    """
    if row.quantize is not None:
        row.quantize(graph, Options(keep_float, calibration, wider))
    for rewrite in row.rewrites:
        rewrite(graph)
