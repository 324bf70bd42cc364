"""A bfloat16 graph for runtimes without bfloat16 kernels, such as ONNX Runtime's on the CPU.

Every operator computes in float32, and its result is rounded to bfloat16: as on a GPU, whose
products of bfloat16 are summed in float32 too, though in another order. It is for verification;
what an engine compiled from the graph itself adds or keeps inside a fused kernel is not in it.
"""

import onnx_ir as ir

from siren_export.graph.builder import GuardGraph

from .edit import after, before

_WIDE, _NARROW = ir.DataType.FLOAT, ir.DataType.BFLOAT16
_OTHER_RESULT = ("Cast", "Shape", "Size", "Less", "LessOrEqual", "Equal", "Greater")


def widen_bfloat16(model: ir.Model) -> None:
    """Rewrite every operator on bfloat16 values between a cast to float32 and one back."""
    graph = GuardGraph(model)
    narrow = {value for value in model.graph.initializers.values() if value.dtype == _NARROW}
    wide: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type == "Cast":
            if node.attributes["to"].as_int() == int(_NARROW):
                narrow.add(node.outputs[0])
            continue
        taken = [(i, value) for i, value in enumerate(node.inputs) if value and value in narrow]
        for index, value in taken:
            if value not in wide:
                name = f"{value.name}:wide"
                wide[value] = before(graph, node).op("Cast", value, name=name, to=int(_WIDE))
            node.replace_input_with(index, wide[value])
        if taken and node.op_type not in _OTHER_RESULT:
            for output in node.outputs:
                users, name = output.uses(), f"{output.name}:narrow"
                rounded = after(graph, output).op("Cast", output, name=name, to=int(_NARROW))
                for user, index in users:
                    user.replace_input_with(index, rounded)
                narrow.add(rounded)
