"""The token embedding in 8 bits with one scale a row: a quarter of the memory.

On MiniLM, where nothing else was quantized, it moved scores by 0.0006 in the mean.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import FLOAT, GuardGraph
from siren_export.graph.weights import Weight

from .edit import add_weight, before, replace

_LEVELS = 127


def quantize_embedding(graph: GuardGraph) -> None:
    """Rewrite every lookup of rows in a float32 table [rows, channels]."""
    for lookup in list(graph.model.graph):
        table = lookup.inputs[0] if lookup.op_type == "Gather" else None
        source = graph.weights.get(str(table.name)) if table is not None else None
        if source is not None and source.dtype == FLOAT and len(source.shape) == 2:
            _replace(graph, lookup, source)


def _replace(graph: GuardGraph, lookup: ir.Node, source: Weight) -> None:
    table, rows = lookup.inputs
    assert table is not None
    name = str(lookup.name)
    values = Weight(ir.DataType.INT8, source.shape, lambda: _values(source))
    scales = Weight(FLOAT, (source.shape[0], 1), lambda: map(_scales, source.blocks()))
    r = before(graph, lookup)
    table_int8 = add_weight(graph, f"{table.name}.int8", values)
    table_scales = add_weight(graph, f"{table.name}.scale", scales)
    row = r.op("Gather", table_int8, rows, name=f"{name}.int8")
    scale = r.op("Gather", table_scales, rows, name=f"{name}.scale")
    row = r.op("Cast", row, name=f"{name}.cast", to=int(FLOAT))
    replace(graph, [lookup], r.op("Mul", row, scale, name=f"{name}.rescale"))


def _values(source: Weight) -> Iterator[np.ndarray]:
    for rows in source.blocks():
        yield np.rint(rows / _scales(rows)).astype(np.int8)


def _scales(rows: np.ndarray) -> np.ndarray:
    scales: np.ndarray = np.abs(rows).max(axis=1, keepdims=True) / np.float32(_LEVELS)
    scales[scales == 0] = 1  # rows of zeros, and of values so small that the quotient underflows
    return scales
