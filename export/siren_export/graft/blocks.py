"""The blocks of a decoder's graph, found by how the residual stream runs through it.

    stream -> norm -> attention -> + -> norm -> MLP -> +     and so on, block after block
       `--------------------------´ `-----------------´

From the logits back to the last norm, and from there along the stream: each sum has one operand
that the other was computed from. The former is the stream before it, the latter what a branch adds.
Whose attention a branch holds is told by the cache that the attention writes, whose names
genai_config.json gives. No other name is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from siren_runtime.errors import CheckpointError

_SKIP_NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_NORMS = (*_SKIP_NORMS, "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")
_LINEAR = ("MatMul", "MatMulNBits", "Gemm", "MoE", "QMoE")
_SUM = 3  # which output of a skip norm is the sum that it normalises


@dataclass(frozen=True, eq=False)
class Block:
    """What can be read of a block, each [batch, tokens, hidden].

    Attributes:
        residual: the stream behind it; of the last block, what the final norm makes of it, which
            is what transformers calls its hidden state.
        mlp: what its MLP gives, before any norm or factor behind it.
    """

    residual: ir.Value
    mlp: ir.Value


@dataclass(frozen=True, eq=False)
class _Sum:
    """Where a branch joins the stream: `stream` + `branch` = `after`.

    `attention` is the block whose attention the branch holds; None where it holds none.
    """

    stream: ir.Value
    branch: ir.Value
    after: ir.Value
    attention: int | None


class DecoderGraph:
    """A decoder's graph, and what of it depends on its tokens."""

    def __init__(
        self, graph: ir.Graph, source: str, tokens: str, logits: str, caches: list[str]
    ) -> None:
        """Look a graph over.

        Args:
            source: what errors call it.
            tokens: the input that holds token ids.
            logits: the output that holds logits.
            caches: of each block, the output that holds its keys.

        Raises:
            CheckpointError: there is no such input or output.
        """
        self.source = source
        self.logits = self._output(graph, logits)
        self._blocks_of = {self._output(graph, name).producer(): i for i, name in enumerate(caches)}
        if len(self._blocks_of) < len(caches) or None in self._blocks_of:
            raise self._unknown("one node a block that writes its cache", "fewer")
        inputs = [value for value in graph.inputs if value.name == tokens]
        if not inputs:
            raise self._unknown(f"an input {tokens!r}", [value.name for value in graph.inputs])
        self._dependent = set(inputs)
        for node in graph:
            if any(value in self._dependent for value in node.inputs):
                self._dependent.update(node.outputs)

    def blocks(self) -> list[Block]:
        """Find every block, from the first on.

        Raises:
            CheckpointError: the graph is not built so; the message says what was looked for.
        """
        final = self._final_norm()
        after: list[list[_Sum]] = []
        for joined in reversed(list(self._sums(final))):
            if joined.attention is not None:
                if joined.attention != len(after):
                    raise self._unknown(
                        f"the attention of block {len(after)} along the residual stream",
                        f"that of block {joined.attention}",
                    )
                after.append([])
            if not after:
                raise self._unknown("attention in the first branch", joined.branch.name)
            after[-1].append(joined)
        if len(after) != len(self._blocks_of):
            raise self._unknown(
                f"{len(self._blocks_of)} blocks, as many as there are caches", len(after)
            )
        streams = [sums[-1].after for sums in after]
        streams[-1] = final.outputs[0]
        return [
            Block(stream, self._mlp(number, sums[-1]))
            for number, (stream, sums) in enumerate(zip(streams, after, strict=True))
        ]

    def _final_norm(self) -> ir.Node:
        """The norm that the logits are computed from, with nothing between that mixes tokens."""
        value = self.logits
        while True:
            node = value.producer()
            if node is None:
                raise self._unknown("a norm before the logits", value.name)
            if node.op_type in _NORMS:
                return node
            value = self._only_dependent(node, "before the logits")

    def _sums(self, final: ir.Node) -> Iterator[_Sum]:
        """The sums along the residual stream, from the last to the first."""
        after = final.outputs[0]
        found = self._operands_of_norm(final)
        while found is not None:
            stream, branch = self._ordered(*found)
            yield _Sum(stream, branch, after, self._attention(branch, stream))
            after = stream
            found = self._operands(stream)

    def _operands_of_norm(self, norm: ir.Node) -> tuple[ir.Value, ir.Value] | None:
        if norm.op_type in _SKIP_NORMS:
            return _present(norm.inputs[0]), _present(norm.inputs[1])
        return self._operands(_present(norm.inputs[0]))

    def _operands(self, value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
        """The operands of the sum that a value is; None where it is none."""
        node = _uncast(value).producer()
        if node is None:
            return None
        if node.op_type in _SKIP_NORMS and _uncast(value) is node.outputs[_SUM]:
            return self._operands_of_norm(node)
        operands = [one for one in node.inputs if one is not None and one in self._dependent]
        if node.op_type == "Add" and len(operands) == 2:
            return operands[0], operands[1]
        return None

    def _ordered(self, one: ir.Value, other: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Which operand is the stream, and which the branch that was computed from it."""
        for stream, branch in ((one, other), (other, one)):
            origin = _uncast(stream).producer()
            if any(node is origin for node in _ancestors(branch)):
                return stream, branch
        raise self._unknown(
            "a sum of the residual stream and a branch computed from it",
            f"{one.name!r} and {other.name!r}, neither computed from the other",
        )

    def _attention(self, branch: ir.Value, stream: ir.Value) -> int | None:
        """The block whose attention is in a branch."""
        origin = _uncast(stream).producer()
        found = {
            self._blocks_of[node]
            for node in _ancestors(branch, stop=origin)
            if node in self._blocks_of
        }
        if len(found) > 1:
            raise self._unknown("the attention of one block in a branch", sorted(found))
        return found.pop() if found else None

    def _mlp(self, number: int, last: _Sum) -> ir.Value:
        """What the MLP of a block gives, given the block's last sum."""
        value = last.branch
        if last.attention is not None:  # attention and MLP side by side: the branch is their sum
            operands = self._operands(value) or (value, value)
            without = [one for one in operands if self._attention(one, last.stream) is None]
            if len(without) != 1:
                raise self._unknown(f"an MLP in block {number} behind or beside attention", "none")
            (value,) = without
        while True:
            node = value.producer()
            if node is None:
                break
            if node.op_type in _LINEAR:
                return value
            before = self._only_dependent(node, f"behind the MLP of block {number}")
            producer = before.producer()
            if node.op_type == "Add" and producer is not None and producer.op_type in _LINEAR:
                return value  # with its bias
            if node.op_type not in ("Mul", "Cast", *_NORMS):
                break
            value = before
        raise self._unknown(
            f"a matrix product at the end of block {number}'s MLP",
            node.op_type if node else value.name,
        )

    def _only_dependent(self, node: ir.Node, where: str) -> ir.Value:
        """The one input of a node that depends on the tokens."""
        dependent = [one for one in node.inputs if one is not None and one in self._dependent]
        if len(dependent) != 1:
            raise self._unknown(
                f"operators of one activation {where}",
                f"{node.op_type} {node.name!r} of {len(dependent)}",
            )
        return dependent[0]

    def _output(self, graph: ir.Graph, name: str) -> ir.Value:
        for value in graph.outputs:
            if value.name == name:
                return value
        raise self._unknown(f"an output {name!r}", [value.name for value in graph.outputs][:8])

    def _unknown(self, expected: str, found: object) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: not a decoder graph that can be grafted: looked for {expected}, found "
            f"{found}"
        )


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None  # these inputs are not optional
    return value


def _uncast(value: ir.Value) -> ir.Value:
    """What a value was before it was cast."""
    node = value.producer()
    while node is not None and node.op_type == "Cast":
        value = _present(node.inputs[0])
        node = value.producer()
    return value


def _ancestors(value: ir.Value, stop: ir.Node | None = None) -> Iterator[ir.Node]:
    """The nodes that a value is computed by; not `stop`, nor what only it needs."""
    seen: set[ir.Node] = set() if stop is None else {stop}
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(one.producer() for one in node.inputs if one is not None)
