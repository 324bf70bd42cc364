"""Give a decoder's graph one more output: the neurons that a head reads, of each token."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from siren_export.graph.taps import Taps
from siren_export.sources.onnx_blocks import Block

FLOAT = ir.DataType.FLOAT
_SCOPE = "siren"
_TOGETHER = 8192  # numbers of a token whose states are joined before neurons are picked of them


def states_of(blocks: Sequence[Block], taps: Taps) -> dict[int, ir.Value]:
    """What a head reads, block by block, [batch, tokens, hidden] each."""
    return {block: blocks[block].state(taps.state) for block in taps.channels}


def add_neurons(
    graph: ir.Graph,
    blocks: Sequence[Block],
    taps: Taps,
    output: str,
    projection: ir.TensorProtocol | None = None,
) -> None:
    """Add the output `output`: float32 [batch, tokens, n_features], in the order of the features.

    Neurons are picked of a few blocks at once, which takes less than to pick them block by block,
    and holds no more than these few states.

    Args:
        projection: float32 [n_features, width]; what it makes of the neurons is put out instead.
    """
    nodes: list[ir.Node] = []
    picked = []
    for group in _groups(states_of(blocks, taps)):
        scope, states = f"{_SCOPE}.{next(iter(group))}", list(group.values())
        starts = np.cumsum([0, *(_width(state) for state in states[:-1])])
        places = [taps.channels[block] + start for block, start in zip(group, starts, strict=True)]
        joined = states[0]
        if len(states) > 1:
            nodes.append(ir.node("Concat", states, {"axis": 2}))
            joined = _named(nodes[-1], f"{scope}.states", joined.dtype)
        channels = _constant(graph, f"{scope}.channels", np.concatenate(places))
        nodes.append(ir.node("Gather", [joined, channels], {"axis": 2}))
        picked.append(_named(nodes[-1], f"{scope}.neurons", joined.dtype))
    if len({value.dtype for value in picked}) > 1 or None in {value.dtype for value in picked}:
        picked = [_to_float(nodes, value) for value in picked]
    nodes.append(ir.node("Concat", picked, {"axis": 2}))
    joined = _named(nodes[-1], f"{_SCOPE}.concat", picked[0].dtype)
    result = joined if joined.dtype == FLOAT else _to_float(nodes, joined)
    width = sum(len(channels) for channels in taps.channels.values())
    if projection is not None:
        matrix = ir.val(f"{_SCOPE}.projection", const_value=projection)
        graph.initializers[str(matrix.name)] = matrix
        nodes.append(ir.node("MatMul", [result, matrix]))
        result = _named(nodes[-1], f"{_SCOPE}.projected", FLOAT)
        width = projection.shape.numpy()[-1]
    result.name = output
    result.shape = ir.Shape(["batch_size", "sequence_length", width])
    graph.extend(nodes)
    graph.outputs.append(result)


def add_states(graph: ir.Graph, states: Sequence[ir.Value], names: Sequence[str]) -> None:
    """Add whole states as outputs of their own, float32 [batch, tokens, hidden]."""
    nodes: list[ir.Node] = []
    for state, name in zip(states, names, strict=True):
        nodes.append(ir.node("Cast", [state], {"to": int(FLOAT)}))
        output = _named(nodes[-1], name, FLOAT)
        output.shape = state.shape
        graph.outputs.append(output)
    graph.extend(nodes)


def add_means(graph: ir.Graph, states: Sequence[ir.Value], output: str) -> None:
    """Add the output `output`: the mean of each state over all tokens of the pass, one behind the
    other, float32 [batch, 1, states * hidden].
    """
    nodes: list[ir.Node] = []
    axes = _constant(graph, f"{_SCOPE}.axes", np.array([1]))
    means = []
    for number, state in enumerate(states):
        value = state if state.dtype == FLOAT else _to_float(nodes, state)
        nodes.append(ir.node("ReduceMean", [value, axes], {"keepdims": 1}))
        means.append(_named(nodes[-1], f"{_SCOPE}.{number}.mean", FLOAT))
    nodes.append(ir.node("Concat", means, {"axis": 2}))
    result = _named(nodes[-1], output, FLOAT)
    result.shape = ir.Shape(["batch_size", 1, None])
    graph.extend(nodes)
    graph.outputs.append(result)


def _groups(states: Mapping[int, ir.Value]) -> list[dict[int, ir.Value]]:
    """States, of one dtype and known width each, in groups of `_TOGETHER` numbers a token."""
    groups: list[dict[int, ir.Value]] = []
    total = 0
    for block, state in states.items():
        total += _width(state)
        before = next(iter(groups[-1].values())) if groups else None
        if before is None or not _width(state) or before.dtype != state.dtype or total > _TOGETHER:
            groups.append({})
            total = _width(state) or _TOGETHER
        groups[-1][block] = state
    return groups


def _width(state: ir.Value) -> int:
    """How many channels a state has; 0 where the graph does not say."""
    width = None if state.shape is None else state.shape[-1]
    return width if isinstance(width, int) else 0


def _to_float(nodes: list[ir.Node], value: ir.Value) -> ir.Value:
    nodes.append(ir.node("Cast", [value], {"to": int(FLOAT)}))
    return _named(nodes[-1], f"{value.name}.float", FLOAT)


def _named(node: ir.Node, name: str, dtype: ir.DataType | None) -> ir.Value:
    """The output of a node, with its name and dtype; the node is called the same."""
    node.name = name
    value = node.outputs[0]
    value.name = name
    if dtype is not None:
        value.dtype = dtype
    return value


def _constant(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(values.astype(np.int64), name=name))
    graph.initializers[name] = value
    return value
