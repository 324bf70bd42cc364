"""Which passes make the authored graph one that a target takes."""

from collections.abc import Set

from siren_export.graph.builder import FLOAT, GuardGraph
from siren_export.guard.score import compute_dtype
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import InputError

from . import int4, int8, tensorrt10
from .calibration import Calibration
from .decompose_attention import decompose_attention
from .decompose_gelu import decompose_gelu
from .decompose_rms_norm import decompose_rms_norm
from .decompose_rotary import decompose_rotary
from .edit import CONTRIB
from .embedding import quantize_embedding
from .long_attention import fuse_long_attention
from .quantize_linears import FLOAT8, INT8, quantize_linears
from .weight_only import quantize_weights


def check_supported(precision: Precision, target: Target) -> None:
    """Refuse a precision that a target has no passes for.

    Raises:
        InputError: bf16 or fp8 for onnxruntime, int4 for tensorrt or tensorrt10.
    """
    if precision in ("bf16", "fp8") and target == "onnxruntime":
        raise InputError(
            f"precision {precision} is made for the TensorRT targets only, since ONNX Runtime's "
            "CPU has no such products; name a --target, or export with fp32, fp16, int8 or int4"
        )
    if precision == "int4" and target in ("tensorrt", "tensorrt10"):
        raise InputError(
            f"precision int4 is not made for target {target}, only for onnxruntime and "
            "tensorrt-rtx; export with int8, fp16 or fp32"
        )


def needs_calibration(precision: Precision, target: Target) -> bool:
    """Whether activations are quantized, with scales that example texts give."""
    return precision == "fp8" or (precision == "int8" and target in ("tensorrt", "tensorrt10"))


def uses_calibration(precision: Precision, target: Target) -> bool:
    """Whether example texts make the graph more accurate, if not `needs_calibration`."""
    return precision == "int4" or needs_calibration(precision, target)


def lower(
    graph: GuardGraph,
    precision: Precision,
    target: Target,
    keep_float: Set[str] = frozenset(),
    calibration: Calibration | None = None,
) -> None:
    """Rewrite the authored graph in place for a precision and a target.

    - onnxruntime takes it as it is, and weights and activations in 8 bits or weights in 4;
    - tensorrt and tensorrt-rtx compile Attention in float16 and bfloat16 only;
    - tensorrt10 takes primitive operators only (`tensorrt10.check_operators`);
    - tensorrt-rtx takes weights in 8 and 4 bits, its products stay in float16;
    - tensorrt and tensorrt10 take weights and activations in 8 bits;
    - all three take them in float8, on GPUs that have it (compute capability 8.9 and from 9.0).

    Args:
        keep_float: names of the matrices that onnxruntime's int8 and int4 leave in float32;
            one that a graph does not have is ignored there.
        calibration: of the linear layers' inputs, where `uses_calibration`; 4 bits do without.
    """
    if target == "onnxruntime" and precision in ("int8", "int4"):
        if precision == "int8":
            int8.quantize_linears(graph, keep_float)
        else:
            int4.quantize_linears(graph, keep_float, calibration)
        quantize_embedding(graph)
        fuse_long_attention(graph)
        graph.model.graph.opset_imports[CONTRIB] = 1
    if needs_calibration(precision, target):
        if calibration is None:
            raise AssertionError(f"{precision} for {target} is made from calibration")
        quantize_linears(graph, calibration, FLOAT8 if precision == "fp8" else INT8)
    compute = compute_dtype(precision, target)
    if target == "tensorrt-rtx" and precision in ("int8", "int4"):
        quantize_weights(graph, 8 if precision == "int8" else 4, calibration)
    if target in ("tensorrt", "tensorrt-rtx") and compute == FLOAT:
        decompose_attention(graph, compute)
    elif target == "tensorrt10":
        decompose_attention(graph, compute)
        decompose_rotary(graph)
        decompose_rms_norm(graph)
        decompose_gelu(graph, compute)
        graph.model.opset_imports[""] = tensorrt10.OPSET
        graph.model.ir_version = tensorrt10.IR_VERSION
