"""The token embedding of decoders."""

import onnx_ir as ir

from .builder import GraphBuilder
from .weights import BackboneWeights


def embed_tokens(
    g: GraphBuilder,
    weights: BackboneWeights,
    input_ids: ir.Value,
    shape: tuple[int, int],
    *,
    tied: bool,
) -> ir.Value:
    """The rows of input_ids [batch, sequence], float32 [batch, sequence, hidden].

    Args:
        shape: of the table, [vocabulary, hidden].
        tied: whether the output has the same table; it may then be stored as the output's alone.
    """
    stored = weights.source.tensors
    alias = tied and "embed_tokens.weight" not in stored and "lm_head.weight" in stored
    table = weights.table("lm_head.weight" if alias else "embed_tokens.weight", shape, g.compute)
    return g.to_float(g.op("Gather", g.weight("embed_tokens.weight", table), input_ids))
