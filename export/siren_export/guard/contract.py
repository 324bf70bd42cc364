"""Inputs and outputs of a graph by its contract, as `siren_runtime.bundle.graphs` has it."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import GraphBuilder, GuardGraph, Output
from siren_runtime.bundle.graphs import Contract


def add_inputs(g: GraphBuilder, contract: Contract) -> dict[str, ir.Value]:
    """Give the graph the contract's inputs, in its order; return them by name."""
    return {
        spec.name: g.input(spec.name, _dtype(spec.dtype), spec.shape) for spec in contract.inputs
    }


def build(
    g: GraphBuilder, name: str, contract: Contract, values: Mapping[str, ir.Value]
) -> GuardGraph:
    """Close the graph with the contract's outputs, in its order.

    Args:
        values: of the outputs, by name.
    """
    return g.build(
        name,
        {
            spec.name: Output(values[spec.name], spec.shape, _dtype(spec.dtype))
            for spec in contract.outputs
        },
    )


def _dtype(name: str) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(name))
