"""What every pass does to a graph: find products with constants, put nodes in place of others."""

from collections.abc import Iterator, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GuardGraph
from siren_export.graph.weights import Weight

CONTRIB = "com.microsoft"  # the domain of ONNX Runtime's own operators


@dataclass(frozen=True)
class Linear:
    """A product of x [..., in] with a constant float32 matrix [in, out].

    Where nothing but the addition of a constant `bias` [out] reads the product, that node is
    `addition`.
    """

    product: ir.Node
    x: ir.Value
    matrix_name: str
    addition: ir.Node
    bias: ir.Value | None

    @property
    def name(self) -> str:
        """The layer's name: that of its product without the operator."""
        return str(self.product.name).rpartition("/")[0]


def linears(graph: GuardGraph, keep_float: Set[str] = frozenset()) -> Iterator[Linear]:
    """Find every MatMul with a 2-D float32 weight, in the graph's order.

    Args:
        keep_float: names of weights whose products are left out.
    """
    for product in list(graph.model.graph):
        if product.op_type != "MatMul":
            continue
        x, matrix = product.inputs
        assert x is not None
        assert matrix is not None
        weight = graph.weights.get(str(matrix.name))
        if matrix.name in keep_float or weight is None:
            continue
        if weight.dtype == FLOAT and len(weight.shape) == 2:
            addition, bias = _bias(graph, product)
            yield Linear(product, x, str(matrix.name), addition, bias)


def _bias(graph: GuardGraph, product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    users = product.outputs[0].consumers()
    if len(users) == 1 and users[0].op_type == "Add":
        for value in users[0].inputs:
            if value is not None and value.name in graph.weights:
                return users[0], value
    return product, None


def node(
    op_type: str,
    inputs: list[ir.Value | None],
    name: str,
    *,
    domain: str = "",
    **attributes: int,
) -> ir.Node:
    """Make a node of one output, which is called after it, as the graph authors do."""
    return ir.node(op_type, inputs, attributes, outputs=[ir.val(name)], name=name, domain=domain)


def add_weight(graph: GuardGraph, name: str, weight: Weight) -> ir.Value:
    """Add a weight to the graph."""
    value = ir.val(name, dtype=weight.dtype, shape=weight.shape)
    graph.model.graph.initializers.add(value)
    graph.weights[name] = weight
    return value


def const(graph: GuardGraph, value: float | list[int], dtype: ir.DataType) -> ir.Value:
    """A scalar or short vector, stored inside the graph and shared by equal uses."""
    name = f"const.{dtype.name.lower()}.{value}".replace(" ", "")
    initializers = graph.model.graph.initializers
    if name not in initializers:
        tensor = ir.tensor(np.array(value, dtype=dtype.numpy()), name=name)
        initializers.add(ir.val(name, const_value=tensor))
    return initializers[name]


def insert_after(graph: GuardGraph, value: ir.Value, nodes: list[ir.Node]) -> None:
    """Put `nodes` right after the node that makes `value`."""
    producer = value.producer()
    assert producer is not None
    graph.model.graph.insert_after(producer, nodes)


def replace(graph: GuardGraph, old: list[ir.Node], output: ir.Value, new: list[ir.Node]) -> None:
    """Put `new` in place of `old`; the last new node's output stands in for `output`.

    Weights that only `old` read are dropped.
    """
    inner = graph.model.graph
    inner.insert_before(old[0], new)
    output.replace_all_uses_with(new[-1].outputs[0])
    inputs = {value for n in old for value in n.inputs if value is not None}
    inner.remove(old, safe=True)
    for value in inputs:
        if value.name in graph.weights and not value.uses():
            del graph.weights[value.name]
            del inner.initializers[value.name]
