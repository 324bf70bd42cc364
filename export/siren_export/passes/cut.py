"""Cut a finished graph into segments, each of which goes on from what those before it made.

A value that rests on the tokens' own rows is made once, and kept for the segments behind: a state.
What follows from the mask and the lengths alone, such as which keys are visible and how ropes turn,
is made anew in each segment, since it is cheap, and has no row for each text that could leave.
"""

from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GuardGraph
from siren_runtime.bundle.graphs import INPUT_IDS

from .edit import before, nodes_of, replace


def cut(
    graph: GuardGraph,
    inputs: Sequence[Sequence[str]],
    outputs: Sequence[Sequence[str]],
    shape: Callable[[str], list[int | str]],
) -> list[GuardGraph]:
    """Cut a graph, which no pass changes any more.

    Args:
        inputs: the names of the graph's inputs that each segment takes.
        outputs: the names of the outputs that it gives beside its states. A segment computes what
            they need, and no segment before it has.
        shape: of a state by its name; states are float32.

    Returns:
        The segments. They take their inputs, then states, under the names that they have in the
        graph, and give their outputs and then the states that they make.
    """
    inner = graph.model.graph
    _take_lengths_from_tokens(graph)
    rows = _with_rows(inner)
    named = {str(value.name): value for value in inner.outputs}
    wanted = [[named[name] for name in of_segment] for of_segment in outputs]
    made: set[ir.Value] = set()  # by the segments so far
    taken: list[list[ir.Value]] = []
    given: list[list[ir.Value]] = []
    for of_segment in wanted:
        new, states = _needed(of_segment, made, rows)
        taken.append(states)
        given.append([value for node in inner for value in node.outputs if value in new])
        made |= new
    kept = {state for states in taken for state in states}
    found = []
    for own, values, states, new_values in zip(inputs, wanted, taken, given, strict=True):
        fed = [value for value in inner.inputs if value.name in own]
        new_states = [value for value in new_values if value in kept]
        found.append(_segment(graph, fed, states, [*values, *new_states], shape))
    return found


def _needed(
    outputs: Sequence[ir.Value], made: set[ir.Value], rows: set[ir.Value]
) -> tuple[set[ir.Value], list[ir.Value]]:
    """The values with rows that outputs need, but for those that were made; and these of them."""
    new: set[ir.Value] = set()
    states: dict[ir.Value, None] = {}
    stack = list(outputs)
    while stack:
        value = stack.pop()
        if value in made:
            states[value] = None
        elif value in rows and value not in new:
            new.add(value)
            producer = value.producer()
            if producer is not None:
                stack += _read_by(producer)
    return new, sorted(states, key=lambda value: str(value.name))


def _segment(
    graph: GuardGraph,
    inputs: Sequence[ir.Value],
    states: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    shape: Callable[[str], list[int | str]],
) -> GuardGraph:
    inner = graph.model.graph
    for value in (*states, *outputs):
        if value.shape is None:
            value.dtype, value.shape = FLOAT, ir.Shape(shape(str(value.name)))
    part = ir.convenience.extract(inner, [*inputs, *states], list(outputs))
    weights = {name: graph.weights[name] for name in part.initializers if name in graph.weights}
    model = ir.Model(part, ir_version=graph.model.ir_version, producer_name="siren-edge")
    return GuardGraph(model, weights, compute=graph.compute, causal=graph.causal)


def _read_by(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in the graphs inside it too."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inside in attribute.as_graph():
                yield from _read_by(inside)


def _with_rows(graph: ir.Graph) -> set[ir.Value]:
    """The values that rest on the tokens themselves, and not only on how many there are."""
    rows = {value for value in graph.inputs if value.name == INPUT_IDS}
    for node in graph:
        if any(value in rows for value in _read_by(node)) and not _is_shape_of_tokens(node):
            rows.update(node.outputs)
    return rows - set(graph.inputs)


def _is_shape_of_tokens(node: ir.Node) -> bool:
    x = node.inputs[0] if node.op_type == "Shape" else None
    return x is not None and x.is_graph_input()


def _take_lengths_from_tokens(graph: GuardGraph) -> None:
    """Let those ask the graph's input who ask a value of rows how many texts or tokens it has.

    Values are [batch, sequence, channels]. They are asked for one of the first two, or, by what
    expands a number to one for each token, for the whole shape, where they have one channel.
    """
    inner = graph.model.graph
    input_ids = next(value for value in inner.inputs if value.name == INPUT_IDS)
    rows = _with_rows(inner)
    for node in nodes_of(inner, "Shape"):
        users = node.outputs[0].consumers()
        if node.inputs[0] not in rows or node.attributes:
            continue
        if all(user.op_type == "Gather" and _is_batch_or_sequence(user) for user in users):
            node.replace_input_with(0, input_ids)
        elif all(user.op_type == "Expand" for user in users):
            place = before(graph, users[0], f"{node.name}/tokens")
            tokens = place.op("Shape", input_ids)
            one = place.op("Concat", tokens, place.const([1]), axis=0)
            replace(graph, [node], one)


def _is_batch_or_sequence(gather: ir.Node) -> bool:
    index = gather.inputs[1]
    value = None if index is None else index.const_value
    return value is not None and int(value.numpy().reshape(-1)[0]) in (0, 1)
