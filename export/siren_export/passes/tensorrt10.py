"""What the ONNX parser of TensorRT 10.3 takes, and the check that a graph holds nothing else.

The table is docs/operators.md of github.com/onnx/onnx-tensorrt at 0137504e2b25 (TensorRT 10.6),
with the types and restrictions that it states, less what that parser learnt after 10.3: by
docs/Changelog.md BlackmanWindow, HammingWindow and HannWindow (10.4) and STFT (10.5); and CastLike,
Gelu and Mish, which the parser of 9.2 did not have, and of which the changelog says nothing.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from siren_export.graph.builder import GuardGraph
from siren_runtime.errors import InputError

# The ONNX that TensorRT 10.3, JetPack 6's, was released for.
_OPSET, _IR_VERSION = 20, 10

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_HALVES = _FLOATS - {TensorProto.BFLOAT16}
_NUMBERS = _FLOATS | {TensorProto.INT32, TensorProto.INT64}
_ALL = _NUMBERS | {TensorProto.BOOL}
_QUANTIZED = frozenset({TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4})

# Operators by the types of their first input.
_OPERATORS: Mapping[frozenset[int], str] = {
    _FLOATS: """
        Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv
        ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool
        GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler
        InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log LogSoftmax
        LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu ParametricSoftplus Pow
        QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal
        Resize Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh
        ThresholdedRelu Upsample""",
    _HALVES: "DeformConv GridSample NonMaxSuppression NonZero RoiAlign",
    _NUMBERS: """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual
        Max Mean Min Mod Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
        ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements
        ScatterND Shrink Sign SpaceToDepth Sub Sum TopK""",
    _ALL: """
        Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND
        Identity If Loop OneHot ReverseSequence Reshape Shape Size Slice Split Squeeze Tile
        Transpose Trilu Unsqueeze Where""",
    _ALL | {TensorProto.UINT8}: "Cast",
    frozenset({TensorProto.BOOL}): "And Not Or Xor",
    _QUANTIZED: "DequantizeLinear",
}
_TYPES = {name: types for types, names in _OPERATORS.items() for name in names.split()}
# Operator -> the number of the input that must be an initializer.
_CONSTANT = {"CumSum": 1, "Squeeze": 1, "Unsqueeze": 1} | {
    name: 1 for name in _TYPES if name.startswith("Reduce")
}
_ZERO_POINT = 2  # the number of this input, of QuantizeLinear and DequantizeLinear; must hold zeros


def set_tensorrt10_opset(graph: GuardGraph) -> None:
    """Let the graph, decomposed before, say that it is of that ONNX."""
    graph.model.opset_imports[""] = _OPSET
    graph.model.ir_version = _IR_VERSION


def check_operators(path: Path) -> None:
    """Refuse a written graph that the parser of TensorRT 10.3 would.

    Raises:
        InputError: another opset, or nodes that are not in the table, or not in that form; the
            message names each, and a node's name carries its layer.
    """
    model = onnx.load(path, load_external_data=False)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    refused = [] if opsets == {"": _OPSET} else [f"opsets {opsets}, expected {_OPSET} alone"]
    typed = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*typed.value_info, *typed.input, *typed.output)
    } | {tensor.name: tensor.data_type for tensor in typed.initializer}
    constants = {tensor.name: tensor for tensor in typed.initializer}
    for node in typed.node:
        reason = _refusal(node, types, constants)
        if reason:
            refused.append(f"node {node.name!r} ({node.op_type}) {reason}")
    if refused:
        shown = "; ".join(refused[:3]) + (f"; and {len(refused) - 3} more" * (len(refused) > 3))
        raise InputError(f"{path.name}: the ONNX parser of TensorRT 10.3 does not take it: {shown}")


def _refusal(
    node: onnx.NodeProto, types: Mapping[str, int], constants: Mapping[str, TensorProto]
) -> str | None:
    if node.domain or node.op_type not in _TYPES:
        return "is not an operator that it knows"
    dtype = types.get(node.input[0], TensorProto.UNDEFINED) if node.input else None
    if dtype is not None and dtype not in _TYPES[node.op_type]:
        return f"has an input of type {TensorProto.DataType.Name(dtype)}"
    position = _CONSTANT.get(node.op_type)
    if position is not None and _given(node, position) not in {None, *constants}:
        return f"has an input {_given(node, position)!r} that is not constant"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        zero = _given(node, _ZERO_POINT)
        if zero is not None and (zero not in constants or _values(constants[zero]).any()):
            return f"has a zero point {zero!r} that is not 0"
    return None


def _given(node: onnx.NodeProto, position: int) -> str | None:
    """The name of an input; None where it is left out."""
    return node.input[position] or None if len(node.input) > position else None


def _values(tensor: TensorProto) -> np.ndarray:
    values: np.ndarray = numpy_helper.to_array(tensor).astype(np.float32)
    return values
