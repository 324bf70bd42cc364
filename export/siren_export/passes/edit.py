"""What every pass does to a graph: find linears, put nodes at a place, take nodes out."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from siren_export.graph.builder import INT64, Attribute, GuardGraph
from siren_export.graph.constants import constant
from siren_export.graph.roles import Role
from siren_export.graph.weights import Weight

CONTRIB = "com.microsoft"  # the domain of ONNX Runtime's own operators


@dataclass(frozen=True)
class Linear:
    """A product of x [..., in] with a constant matrix [in, out].

    Where nothing but the addition of a constant `bias` [out] reads the product, that node is
    `addition`; else the product itself is.
    """

    product: ir.Node
    x: ir.Value
    matrix: ir.Value
    role: Role | None
    addition: ir.Node
    bias: ir.Value | None

    @property
    def name(self) -> str:
        """The layer's name: that of its product without the operator."""
        return str(self.product.name).rpartition("/")[0]

    @property
    def matrix_name(self) -> str:
        """The name of the matrix among the graph's weights."""
        return str(self.matrix.name)


def linears(graph: GuardGraph) -> Iterator[Linear]:
    """Find every MatMul by a matrix of weights, in the graph's order: the backbone's linears.

    The graph may be rewritten while going through them; what was taken out is passed over.
    """
    initializers = graph.model.graph.initializers
    for product in nodes_of(graph.model.graph, "MatMul"):
        if product.graph is None:
            continue
        x, matrix = product.inputs
        assert x is not None
        assert matrix is not None
        if matrix.name in initializers and matrix.shape is not None and len(matrix.shape) == 2:
            addition, bias = _bias(product, initializers)
            role = graph.roles.get(str(matrix.name))
            yield Linear(product, x, matrix, role, addition, bias)


def by_input(graph: GuardGraph) -> dict[ir.Value, list[Linear]]:
    """The linears by the value that they read, as queries, keys and values read one."""
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in linears(graph):
        groups.setdefault(linear.x, []).append(linear)
    return groups


_ATTENTION_ATTRIBUTES = frozenset({"is_causal", "scale", "q_num_heads", "kv_num_heads"})


def attentions(graph: GuardGraph, also: Set[str] = frozenset()) -> list[ir.Node]:
    """Every Attention, in order. Each is causal or has a mask, and is nothing that passes drop.

    Args:
        also: attributes that the pass knows beside those of every Attention.
    """
    nodes = nodes_of(graph.model.graph, "Attention")
    for node in nodes:
        unknown = set(node.attributes) - _ATTENTION_ATTRIBUTES - also
        masked = len(node.inputs) > 3 and node.inputs[3] is not None
        if unknown or masked == bool(node.attributes.get_int("is_causal", 0)):
            raise AssertionError(
                f"{node.name}: passes rewrite attention that is causal or has a mask, not both, "
                f"and know no {', '.join(sorted(unknown)) or 'other'}"
            )
    return nodes


def _bias(
    product: ir.Node, initializers: Mapping[str, ir.Value]
) -> tuple[ir.Node, ir.Value | None]:
    users = product.outputs[0].consumers()
    if len(users) == 1 and users[0].op_type == "Add":
        for value in users[0].inputs:
            if value is not None and value.name in initializers:
                return users[0], value
    return product, None


def nodes_of(graph: ir.Graph, op_type: str) -> list[ir.Node]:
    """The graph's nodes of one standard operator, in order; safe to rewrite on the way."""
    return [node for node in graph if node.op_type == op_type and not node.domain]


@dataclass
class Place:
    """Where new nodes go, each behind the one put before: see `before` and `after`.

    Names lie under `scope`, so that an engine's errors say which layer a node belongs to.
    """

    graph: ir.Graph
    scope: str
    _anchor: ir.Node
    _behind: bool  # the anchor, which then is the node that was put last; else before it
    _taken: dict[str, int] = field(default_factory=dict)

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str | None = None,
        domain: str = "",
        **attributes: Attribute | ir.Graph,
    ) -> ir.Value:
        """Put a node and return its output, which has its name.

        Args:
            name: the whole name; by default the operator's under the scope.
        """
        if name is None:
            copies = self._taken.get(op_type, 0)
            self._taken[op_type] = copies + 1
            name = f"{self.scope}/{op_type}" + (f"_{copies}" if copies else "")
        value = ir.val(name)
        self._put(ir.node(op_type, inputs, attributes, outputs=[value], name=name, domain=domain))
        return value

    def split(self, x: ir.Value, sizes: list[int]) -> list[ir.Value]:
        """Cut `x` apart along its last axis."""
        name = f"{self.scope}/Split"
        parts = [ir.val(f"{name}:{number}") for number in range(len(sizes))]
        inputs = [x, self.const(sizes)]
        node = ir.node("Split", inputs, {"axis": -1}, outputs=parts, name=name)
        self._put(node)
        return parts

    def const(self, value: float | list[int], dtype: ir.DataType = INT64) -> ir.Value:
        """A scalar or short vector, stored inside the graph and shared by equal uses."""
        return constant(self.graph.initializers, value, dtype)

    def _put(self, node: ir.Node) -> None:
        if self._behind:
            self.graph.insert_after(self._anchor, node)
            self._anchor = node
        else:
            self.graph.insert_before(self._anchor, node)


def before(graph: GuardGraph, node: ir.Node, scope: str | None = None) -> Place:
    """The place before a node; the scope is by default the node's name."""
    return Place(graph.model.graph, scope or str(node.name), node, False)


def after(graph: GuardGraph, value: ir.Value, scope: str | None = None) -> Place:
    """The place right behind the node that makes `value`; the scope is by default its name."""
    producer = value.producer()
    assert producer is not None
    return Place(graph.model.graph, scope or str(producer.name), producer, True)


def replace(graph: GuardGraph, old: list[ir.Node], value: ir.Value) -> None:
    """Let `value` stand in for the output of the last of `old`, and remove these.

    Weights that only `old` read are dropped.
    """
    old[-1].outputs[0].replace_all_uses_with(value)
    read = {value for node in old for value in node.inputs if value is not None}
    graph.model.graph.remove(old, safe=True)
    drop_unread(graph, read)


def add_weight(graph: GuardGraph, name: str, weight: Weight) -> ir.Value:
    """Add a weight to the graph."""
    value = ir.val(name, dtype=weight.dtype, shape=weight.shape)
    graph.model.graph.initializers.add(value)
    graph.weights[name] = weight
    return value


def drop_unread(graph: GuardGraph, values: Iterable[ir.Value]) -> None:
    """Drop those of `values` that are weights and that no node reads any more."""
    for value in values:
        if value.name in graph.weights and not value.uses():
            del graph.weights[value.name]
            del graph.model.graph.initializers[value.name]


def import_contrib(graph: GuardGraph) -> None:
    """Let the graph say that it may hold ONNX Runtime's own operators."""
    graph.model.graph.opset_imports[CONTRIB] = 1
