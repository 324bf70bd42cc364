"""explain.NAME.onnx: how a head's logits depend on its features, back to each of them.

It refers to the head's weights by the names that score.onnx has for them.
"""

from siren_export.graph.builder import FLOAT, GraphBuilder, GuardGraph
from siren_export.heads.together import HeadSet
from siren_runtime.bundle.graphs import DIRECTION, FEATURES, explain_graph

from .contract import add_inputs, build


def author_explain(heads: HeadSet, name: str) -> GuardGraph:
    """Author the gradients of one head; they are float32 at every precision."""
    contract = explain_graph(heads.specs[name])
    g = GraphBuilder(FLOAT)
    inputs = add_inputs(g, contract)
    return build(
        g, "explain", contract, heads.explain(g, name, inputs[FEATURES], inputs[DIRECTION])
    )
