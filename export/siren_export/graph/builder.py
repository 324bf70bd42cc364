"""A thin layer over onnx-ir, so that a model's graph reads like the model's paper."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .constants import constant
from .roles import Role
from .weights import Weight, from_array

OPSET = 23
FLOAT = ir.DataType.FLOAT
INT64 = ir.DataType.INT64

Attribute = int | float | str | list[int]


@dataclass
class GuardGraph:
    """An ONNX graph, which passes may rewrite.

    Attributes:
        weights: what the graph refers to by the names of initializers.
        roles: of the backbone's matrices, by the names that they were authored with.
        compute: the dtype of matrix products and attention.
        causal: whether a token sees none after it.
        carried_over: names of matrices that keep the blocks that the checkpoint has them in.
    """

    model: ir.Model
    weights: dict[str, Weight] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    compute: ir.DataType = FLOAT
    causal: bool = True
    carried_over: set[str] = field(default_factory=set)

    def whole(self) -> ir.Model:
        """The model with its weights inside, for small graphs: they are read at once."""
        for name, weight in self.weights.items():
            (values,) = weight.blocks()
            self.model.graph.initializers[name].const_value = ir.tensor(values, name=name)
        return self.model


@dataclass(frozen=True)
class Output:
    """A graph output."""

    value: ir.Value
    shape: list[int | str]
    dtype: ir.DataType = FLOAT


@dataclass
class GraphBuilder:
    """Collects nodes and weights. Names carry the scope, so an engine's errors name our layers.

    `compute` is the dtype of matrix products and attention; what must not overflow is float32
    (see `to_float` at its uses). `causal` says that a token sees none after it.
    """

    compute: ir.DataType
    causal: bool = True
    _nodes: list[ir.Node] = field(default_factory=list)
    _inputs: list[ir.Value] = field(default_factory=list)
    _initializers: dict[str, ir.Value] = field(default_factory=dict)
    _weights: dict[str, Weight] = field(default_factory=dict)
    _roles: dict[str, Role] = field(default_factory=dict)
    _scope: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)
    _shared: dict[str, ir.Value] = field(default_factory=dict)
    _operators: dict[str, int] = field(default_factory=lambda: {"": OPSET})

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything authored inside with `name`."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def once(self, name: str, author: Callable[[], ir.Value]) -> ir.Value:
        """What `author` gives, in a scope `name` of its own; authored at the first call only."""
        if name not in self._shared:
            scope, self._scope = self._scope, [name]
            self._shared[name] = author()
            self._scope = scope
        return self._shared[name]

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        value = ir.val(name, dtype=dtype, shape=shape)
        self._inputs.append(value)
        return value

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str | None = None,
        outputs: int = 1,
        **attributes: Attribute,
    ) -> ir.Value:
        """Append a node and return its first output. `name` defaults to the operator's."""
        unique = self._unique(name or op_type)
        values = [ir.val(unique if i == 0 else f"{unique}:{i}") for i in range(outputs)]
        self._nodes.append(ir.node(op_type, inputs, attributes, outputs=values, name=unique))
        return values[0]

    def split(self, x: ir.Value, sizes: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
        """Cut `x` in two along `axis`, `sizes` int64 [2]."""
        first = self.op("Split", x, sizes, outputs=2, axis=axis)
        return first, self._nodes[-1].outputs[1]

    def weight(self, name: str, weight: Weight) -> ir.Value:
        """Refer to a weight; its bytes are written to the external data file later."""
        unique = self._unique(name)
        value = ir.val(unique, dtype=weight.dtype, shape=weight.shape)
        self._initializers[unique] = value
        self._weights[unique] = weight
        return value

    def table(self, name: str, array: np.ndarray) -> ir.Value:
        """A small array as a weight, in the scope."""
        return self.weight(name, from_array(array))

    def const(self, value: int | float | list[int], dtype: ir.DataType = INT64) -> ir.Value:
        """A scalar or short vector, stored inside the graph and shared by equal uses."""
        return constant(self._initializers, value, dtype)

    def linear(
        self,
        x: ir.Value,
        name: str,
        weight: Weight,
        bias: Weight | None = None,
        *,
        role: Role | None = None,
    ) -> ir.Value:
        """x [..., in] times weight [in, out], plus bias [out]; `role` is noted of the matrix."""
        with self.scope(name):
            matrix = self.weight("weight", weight)
            if role is not None:
                self._roles[str(matrix.name)] = role
            y = self.op("MatMul", x, matrix)
            return y if bias is None else self.op("Add", y, self.weight("bias", bias))

    def inside(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A small tensor, stored inside the graph."""
        value = ir.val(self._unique(name), const_value=tensor)
        self._initializers[str(value.name)] = value
        return value

    def splice(self, nodes: Iterable[ir.Node], operators: Mapping[str, int]) -> None:
        """Append nodes that were written elsewhere, their names put in the scope.

        Args:
            operators: domain -> version of the operators, which all of the graph then has.
        """
        for node in nodes:
            node.name = self._unique((node.name or node.op_type).lstrip("/"))
            for value in node.outputs:
                value.name = self._unique((value.name or node.op_type).lstrip("/"))
            self._nodes.append(node)
        self._operators = dict(operators)

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", x, to=int(dtype))

    def to_compute(self, x: ir.Value) -> ir.Value:
        """A float32 value in the compute dtype."""
        return x if self.compute == FLOAT else self.cast(x, self.compute)

    def to_float(self, x: ir.Value) -> ir.Value:
        """A value of the compute dtype in float32."""
        return x if self.compute == FLOAT else self.cast(x, FLOAT)

    def build(self, name: str, outputs: dict[str, Output]) -> GuardGraph:
        """Close the graph with `outputs` by name."""
        results = []
        for name_of_output, output in outputs.items():
            identity = self.op("Identity", output.value, name=name_of_output)
            identity.dtype, identity.shape = output.dtype, ir.Shape(output.shape)
            results.append(identity)
        graph = ir.Graph(
            self._inputs,
            results,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=self._operators,
            name=name,
        )
        model = ir.Model(graph, ir_version=11, producer_name="siren-edge")
        return GuardGraph(model, self._weights, self._roles, self.compute, self.causal)

    def _unique(self, name: str) -> str:
        full = "/".join((*self._scope, name))
        unique, copies = full, 0
        while unique in self._names:
            copies += 1
            unique = f"{full}_{copies}"
        self._names.add(unique)
        return unique
