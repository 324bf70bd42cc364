"""RotaryEmbedding (opset 23) in primitive operators (RoFormer, arXiv 2104.09864).

With the halves x1, x2 of each head's channels: x1 cos - x2 sin, x2 cos + x1 sin.
"""

import onnx_ir as ir

from siren_export.graph.builder import GuardGraph

from .edit import before, nodes_of, replace

_ALL = (1 << 31) - 1  # more than any head has channels


def decompose_rotary(graph: GuardGraph) -> None:
    """Rewrite every RotaryEmbedding; the tables' rows are looked up once for all of them."""
    rows: dict[ir.Value | None, ir.Value] = {}
    for node in nodes_of(graph.model.graph, "RotaryEmbedding"):
        r = before(graph, node)
        x, cos, sin, positions = node.inputs
        for table in (cos, sin):
            if table not in rows:  # [batch, sequence, 1, head_dim / 2]
                rows[table] = r.op("Unsqueeze", r.op("Gather", table, positions), r.const([2]))
        heads = node.attributes["num_heads"].as_int()
        partial = node.attributes.get_int("rotary_embedding_dim", 0)
        still: list[ir.Value] = []  # the channels that do not turn
        if partial:
            whole = r.op("Reshape", x, r.const([0, 0, heads, -1]))
            end, axis = r.const([_ALL]), r.const([3])
            x = r.op("Slice", whole, r.const([0]), r.const([partial]), axis)
            still = [r.op("Slice", whole, r.const([partial]), end, axis)]
        x = r.op("Reshape", x, r.const([0, 0, heads, 2, -1]))
        first, second = (r.op("Gather", x, r.const(half), axis=3) for half in (0, 1))
        y = r.op(
            "Concat",
            r.op("Sub", r.op("Mul", first, rows[cos]), r.op("Mul", second, rows[sin])),
            r.op("Add", r.op("Mul", second, rows[cos]), r.op("Mul", first, rows[sin])),
            *still,
            axis=-1,
        )
        replace(graph, [node], r.op("Reshape", y, r.const([0, 0, -1])))
