"""Write graphs and the weights that they share: weights.bin once, then each graph."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from siren_runtime.bundle.graphs import GraphSpec, TensorSpec
from siren_runtime.bundle.manifest import FileSpec
from siren_runtime.bundle.progress import Progress

from .bundle_writer import WEIGHTS_FILE, write_file
from .graph.builder import GuardGraph
from .graph.weights import Weight, write_weights


def graph_file(name: str) -> str:
    """The file of the graph that the manifest calls `name`."""
    return f"{name}.onnx"


def write_graphs(
    graphs: Mapping[str, GuardGraph], folder: Path, progress: Progress
) -> dict[str, FileSpec]:
    """Write weights.bin, each weight once, then the graphs that point into it.

    Returns:
        What each file is, by its name. A graph's is `graph_file` of its name.
    """
    weights = _union(graphs)
    total = sum(weight.nbytes for weight in weights.values())
    done = 0

    def written(size: int) -> None:
        nonlocal done
        done += size
        progress("write", min(done, total), total)

    offsets, weights_spec = write_weights(weights, folder / WEIGHTS_FILE, written)
    files = {WEIGHTS_FILE: weights_spec}
    for name, graph in graphs.items():
        for weight_name, weight in graph.weights.items():
            graph.model.graph.initializers[weight_name].const_value = ir.ExternalTensor(
                WEIGHTS_FILE,
                offsets[weight_name],
                weight.nbytes,
                weight.dtype,
                shape=ir.Shape(weight.shape),
                name=weight_name,
            )
        proto = ir.to_proto(graph.model).SerializeToString(deterministic=True)
        files[graph_file(name)] = write_file(folder / graph_file(name), proto)
    return files


def graph_spec(name: str, graph: GuardGraph) -> GraphSpec:
    """What the manifest says of a graph."""

    def specs(values: Sequence[ir.Value]) -> list[TensorSpec]:
        return [
            TensorSpec(
                name=str(value.name),
                dtype=value.dtype.numpy().name,
                shape=[d if isinstance(d, int) else str(d.value) for d in value.shape],
            )
            for value in values
            if value.dtype is not None and value.shape is not None
        ]

    inner = graph.model.graph
    return GraphSpec(
        file=graph_file(name),
        opset=inner.opset_imports[""],
        inputs=specs(inner.inputs),
        outputs=specs(inner.outputs),
    )


def _union(graphs: Mapping[str, GuardGraph]) -> dict[str, Weight]:
    """The weights of all graphs; those of one name are one weight."""
    union: dict[str, Weight] = {}
    for graph in graphs.values():
        for name, weight in graph.weights.items():
            first = union.setdefault(name, weight)
            if (first.dtype, first.shape) != (weight.dtype, weight.shape):
                raise AssertionError(f"two graphs have different weights {name!r}")
    return union
