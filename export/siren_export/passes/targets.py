"""Which passes make the authored graph one that a target takes."""

from siren_runtime.errors import InputError
from siren_runtime.manifest import Precision, Target

from ..graph.builder import FLOAT, GuardGraph
from ..graph.guard import compute_dtype
from .decompose_attention import decompose_attention
from .decompose_rms_norm import decompose_rms_norm
from .decompose_rotary import decompose_rotary
from .weight_only import quantize_weights

# The ONNX that TensorRT 10.3, JetPack 6's, was released for: opset 20, IR version 10.
_TENSORRT10_OPSET, _TENSORRT10_IR_VERSION = 20, 10


def check_supported(precision: Precision, target: Target) -> None:
    """Refuse a precision that a target has no passes for.

    Raises:
        InputError: int8 or int4 for another target than tensorrt-rtx.
    """
    if precision in ("int8", "int4") and target != "tensorrt-rtx":
        raise InputError(
            f"precision {precision} is not made for target {target}, only for tensorrt-rtx; "
            "export with fp16 or fp32"
        )


def lower(graph: GuardGraph, precision: Precision, target: Target) -> None:
    """Rewrite the authored graph in place for a precision and a target.

    - onnxruntime takes it as it is;
    - tensorrt and tensorrt-rtx compile Attention in float16 and bfloat16 only;
    - tensorrt10 knows no operator that is younger than opset 20;
    - tensorrt-rtx takes weights in 8 and 4 bits, its products stay in float16.
    """
    compute = compute_dtype(precision, target)
    if target == "tensorrt-rtx" and precision in ("int8", "int4"):
        quantize_weights(graph, 8 if precision == "int8" else 4)
    if target in ("tensorrt", "tensorrt-rtx") and compute == FLOAT:
        decompose_attention(graph, compute)
    elif target == "tensorrt10":
        decompose_attention(graph, compute)
        decompose_rotary(graph)
        decompose_rms_norm(graph)
        graph.model.opset_imports[""] = _TENSORRT10_OPSET
        graph.model.ir_version = _TENSORRT10_IR_VERSION
