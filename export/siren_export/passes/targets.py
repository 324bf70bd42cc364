"""Which passes make the authored graph one that a target takes."""

import onnx_ir as ir

from siren_runtime.manifest import Target

from ..graph.builder import FLOAT, GuardGraph
from .decompose_attention import decompose_attention
from .decompose_rms_norm import decompose_rms_norm
from .decompose_rotary import decompose_rotary

# The ONNX that TensorRT 10.3, JetPack 6's, was released for: opset 20, IR version 10.
_TENSORRT10_OPSET, _TENSORRT10_IR_VERSION = 20, 10


def lower(graph: GuardGraph, target: Target, compute: ir.DataType) -> None:
    """Rewrite the authored graph in place for a target.

    - onnxruntime takes it as it is;
    - tensorrt and tensorrt-rtx compile Attention in float16 and bfloat16 only;
    - tensorrt10 knows no operator that is younger than opset 20.

    Args:
        compute: the dtype of matrix products and attention.
    """
    if target in ("tensorrt", "tensorrt-rtx") and compute == FLOAT:
        decompose_attention(graph, compute)
    elif target == "tensorrt10":
        decompose_attention(graph, compute)
        decompose_rotary(graph)
        decompose_rms_norm(graph)
        graph.model.opset_imports[""] = _TENSORRT10_OPSET
        graph.model.ir_version = _TENSORRT10_IR_VERSION
