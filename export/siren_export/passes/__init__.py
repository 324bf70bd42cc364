"""Passes over an authored graph: rewrites for a precision, one a file.

A pass finds what it rewrites by operators and weights, never by name, so it applies to any
authored graph. It replaces entries of `GuardGraph.weights` by weights that are computed when they
are written, so a matrix is in memory only while its bytes are made.
"""

from siren_runtime.manifest import Precision

from ..graph.builder import GuardGraph
from . import int4, int8
from .edit import CONTRIB
from .embedding import quantize_embedding


def apply_passes(graph: GuardGraph, precision: Precision) -> None:
    """Rewrite `graph`, authored in the compute dtype of `precision`, for that precision."""
    if precision not in ("int8", "int4"):
        return
    quantize = int8.quantize_linears if precision == "int8" else int4.quantize_linears
    quantize(graph)
    quantize_embedding(graph)
    graph.model.graph.opset_imports[CONTRIB] = 1
