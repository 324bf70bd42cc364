"""Put new nodes in the place of one node of a graph."""

import numpy as np
import onnx_ir as ir

Attribute = int | float | str | list[int]


def nodes_of(graph: ir.Graph, op_type: str) -> list[ir.Node]:
    """The graph's nodes of one operator, in order; safe to rewrite while going through them."""
    return [node for node in graph if node.op_type == op_type and not node.domain]


def linear_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The MatMuls by a matrix of weights [in, out], in order: the backbone's linear layers."""
    return [
        node
        for node in nodes_of(graph, "MatMul")
        if node.inputs[1] is not None and node.inputs[1].name in graph.initializers
    ]


def matrix_name(layer: ir.Node) -> str:
    """The name of the matrix of one of `linear_nodes`."""
    matrix = layer.inputs[1]
    if matrix is None:
        raise AssertionError(f"{layer.name} has no matrix")
    return str(matrix.name)


class Replacement:
    """Nodes that take the place of `node`; their names lie under its name, so errors still say
    which layer they belong to.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node, part: str | None = None) -> None:
        """`part` tells apart what several replacements put before one node."""
        self._graph, self._node = graph, node
        self._scope = str(node.name) if part is None else f"{node.name}/{part}"
        self._taken: dict[str, int] = {}

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Put a node before the replaced one and return its output."""
        copies = self._taken.get(op_type, 0)
        self._taken[op_type] = copies + 1
        name = f"{self._scope}/{op_type}" + (f"_{copies}" if copies else "")
        value = ir.val(name)
        self._graph.insert_before(
            self._node, ir.node(op_type, inputs, attributes, outputs=[value], name=name)
        )
        return value

    def const(
        self, value: int | float | list[int], dtype: ir.DataType = ir.DataType.INT64
    ) -> ir.Value:
        """A scalar or short vector, stored inside the graph and shared by equal uses."""
        name = f"const.{dtype.name.lower()}.{value}".replace(" ", "")
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.array(value, dtype=dtype.numpy()), name=name)
            self._graph.register_initializer(ir.val(name, const_value=tensor))
        return self._graph.initializers[name]

    def finish(self, value: ir.Value) -> None:
        """Give all uses of the replaced node's output `value`, and remove the node."""
        self._node.outputs[0].replace_all_uses_with(value)
        self._graph.remove(self._node, safe=True)
