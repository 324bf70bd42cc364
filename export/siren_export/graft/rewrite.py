"""Give a decoder's graph one more output: the neurons that a head reads, of each token."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from siren_export.graph.taps import Taps
from siren_export.sources.onnx_blocks import Block

FLOAT = ir.DataType.FLOAT
_SCOPE = "siren"


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

    Each block's neurons are picked where the block ends, so that no state outlives its use.

    Args:
        projection: float32 [n_features, width]; what it makes of the neurons is put out instead.
    """
    nodes: list[ir.Node] = []
    picked = []
    for block, state in states_of(blocks, taps).items():
        channels = _constant(graph, f"{_SCOPE}.{block}.channels", taps.channels[block])
        nodes.append(ir.node("Gather", [state, channels], {"axis": 2}))
        picked.append(_named(nodes[-1], f"{_SCOPE}.{block}.neurons", state.dtype))
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
