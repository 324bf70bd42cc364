"""The blocks of a transformer's graph, found by how the residual stream runs through it.

    stream -> norm -> attention -> + -> norm -> MLP -> +     and so on, block after block
       `--------------------------´ `-----------------´

All that a text does to the result passes through each sum of that stream. So the sums are among the
nodes that dominate the result (every path from the tokens to it runs through them), and of their
two operands the stream is the one made by the next such node before, the branch the other: a branch
has its stream as a way around it. A block has two sums, or one where attention and MLP stand side
by side; how many blocks there are is told by the config. Names are read of inputs and outputs only.

Dominators by Cooper, Harvey and Kennedy ("A Simple, Fast Dominance Algorithm"), which takes one
round where a graph has no loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from siren_runtime.errors import CheckpointError

_SKIP_NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_NORMS = (*_SKIP_NORMS, "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")
_MEANS = ("ReduceMean", *_NORMS)  # of what a norm consists, or norms whole
_PRODUCTS = ("MatMul", "Gemm", "MoE")  # parts of the names of products, quantized ones included
_INPUTS = dict(zip(_SKIP_NORMS, (4, 3), strict=True))  # of a skip norm without a bias
SHAPES = ("Shape", "Size")  # what they give does not depend on what the tokens are
_PICKS = ("Cast", "Identity", "Slice", "Gather", "GatherND", "Reshape")


@dataclass(frozen=True, eq=False)
class Block:
    """What can be read of a block, each [batch, tokens, hidden].

    Attributes:
        number: of the block, from 0 on.
        source: what errors call the graph.
        residual: the stream behind it; of the last block, what the final norm makes of it, which
            is what transformers calls its hidden state.
        mlp: what its MLP gives, before any norm or factor behind it; None where that is no product
            with a matrix, as of experts that are added up.
    """

    number: int
    source: str
    residual: ir.Value
    mlp: ir.Value | None

    def state(self, name: Literal["residual", "mlp"]) -> ir.Value:
        """What a head reads of it.

        Raises:
            CheckpointError: its MLP has no such value.
        """
        state = self.residual if name == "residual" else self.mlp
        if state is None:
            raise CheckpointError(
                f"{self.source}: a head of mlp_mean reads what the MLP of block {self.number} "
                "gives: looked for one product with a matrix at its end, found none; a head of "
                "residual_mean can be read from this graph"
            )
        return state


@dataclass(frozen=True, eq=False)
class _Sum:
    """Where a branch joins the stream: `node` adds them."""

    node: ir.Node
    stream: ir.Value
    branch: ir.Value


class TransformerGraph:
    """A graph, and what of it depends on its tokens."""

    def __init__(self, graph: ir.Graph, source: str, tokens: str, result: str) -> None:
        """Look a graph over.

        Args:
            source: what errors call it.
            tokens: the input that holds token ids.
            result: the output that holds logits or the last hidden state.

        Raises:
            CheckpointError: there is no such input or output.
        """
        self.source, self._graph = source, graph
        self._result = self._named(graph.outputs, result, "output")
        root = self._named(graph.inputs, tokens, "input")
        self._dependent = {root}
        self._above: dict[ir.Node, ir.Node | None] = {}  # the next dominator, towards the tokens
        self._depth: dict[ir.Node | None, int] = {None: 0}
        for node in graph:
            before = [value for value in values_read(node) if value in self._dependent]
            if not before or node.op_type in SHAPES:
                continue
            self._dependent.update(node.outputs)
            above = before[0].producer()
            for value in before[1:]:
                above = self._common(above, value.producer())
            self._above[node], self._depth[node] = above, self._depth[above] + 1

    def blocks(self, count: int, caches: Sequence[str] = ()) -> list[Block]:
        """Find every block, from the first on.

        Args:
            count: how many there are.
            caches: of each block, the output that holds its keys, where the graph has them: each
                must be written between the stream before its block and the one behind it.

        Raises:
            CheckpointError: the graph is not built so; the message says what was looked for.
        """
        chain = list(self._dominators(self._result))[::-1]
        sums = [found for node in chain if (found := self._sum(node)) is not None]
        each, left = divmod(len(sums), count)
        if left or each not in (1, 2):
            raise self._unknown(
                f"{count} or {2 * count} sums along the residual stream, one or two for each of "
                f"{count} blocks",
                len(sums),
            )
        firsts, lasts = sums[::each], sums[each - 1 :: each]
        for number, first in enumerate(firsts):
            if not self._mixes(first.branch, first):
                raise self._unknown(
                    f"attention where block {number} begins; is num_hidden_layers {count}", "none"
                )
        streams = [
            self._state(last, following)
            for last, following in zip(lasts[:-1], firsts[1:], strict=True)
        ]
        streams.append(self._last_state(chain, lasts[-1]))
        alone = each == 2
        blocks = [
            Block(number, self.source, stream, self._mlp(last, alone))
            for number, (stream, last) in enumerate(zip(streams, lasts, strict=True))
        ]
        self.check_places(blocks, caches)
        return blocks

    def check_places(self, blocks: Sequence[Block], caches: Sequence[str] = ()) -> None:
        """See that each block is the one of its number, by what its values are computed from.

        The stream behind a block depends on that block's cache and MLP, the stream before it on
        neither.

        Args:
            caches: as of `blocks`.

        Raises:
            CheckpointError: a value belongs to another block.
        """
        before: set[ir.Node] = set()
        for block in blocks:
            behind = set(self._ancestors(block.residual, None))
            parts = {} if block.mlp is None else {"MLP": block.mlp.producer()}
            if caches:
                cache = caches[block.number]
                writer = self._named(self._graph.outputs, cache, "output").producer()
                parts[f"attention of block {block.number}, which writes {cache!r},"] = writer
            for part, node in parts.items():
                if node not in behind or node in before:
                    raise self._unknown(
                        f"the {part} between the streams before and behind block {block.number}",
                        "another",
                    )
            before = behind

    def _sum(self, node: ir.Node) -> _Sum | None:
        """The sum that a dominator of the result is, where it is one of the residual stream."""
        if node.op_type not in ("Add", *_SKIP_NORMS):
            return None
        operands = [value for value in node.inputs[:2] if value in self._dependent]
        origin = self._above.get(node)
        streams = [
            value
            for value in operands
            if value is not None and origin in (value.producer(), _uncast(value).producer())
        ]
        if len(operands) != 2 or len(streams) != 1 or origin is None:
            return None
        (branch,) = (value for value in operands if value is not streams[0])
        assert branch is not None
        if not any(map(_is_product, self._ancestors(branch, origin))):
            return None
        return _Sum(node, streams[0], branch)

    def _state(self, last: _Sum, following: _Sum) -> ir.Value:
        """The stream behind a block, as the next one reads it: the sum, or a norm of it."""
        stream = _uncast(following.stream)
        between = list(self._ancestors(stream, last.node))
        found = {node.op_type for node in between}
        if not found <= {*_PICKS} and not found & {*_MEANS}:
            raise self._unknown(
                "the residual stream between two blocks, as it is or behind a norm",
                f"{', '.join(sorted(found))} before {stream.name!r}",
            )
        return stream

    def _last_state(self, chain: Sequence[ir.Node], last: _Sum) -> ir.Value:
        """What the final norm makes of the last sum: what the first product behind it reads."""
        behind = chain[chain.index(last.node) + 1 :]
        product = next(filter(_is_product, behind), None)
        value = self._result
        if product is not None:
            value = next(one for one in product.inputs if one is not None and self._depends(one))
        while (node := value.producer()) is not None and node is not last.node:
            if node.op_type not in _PICKS:
                break
            value = _present(node.inputs[0])
        return value

    def _mlp(self, last: _Sum, alone: bool) -> ir.Value | None:
        """What the MLP of a block gives, given the block's last sum.

        Args:
            alone: whether the branch holds no attention; else it is the sum of both.
        """
        if len([one for one in last.node.inputs if one is not None]) > _INPUTS.get(
            last.node.op_type, 2
        ):
            return None  # with a bias of the branch
        if alone:
            return self._product(last.branch, last)
        node = last.branch.producer()
        beside = [one for one in node.inputs if one in self._dependent] if node else []
        without = [one for one in beside if one is not None and not self._mixes(one, last)]
        return self._product(without[0], last) if len(without) == 1 else None

    def _mixes(self, branch: ir.Value, last: _Sum) -> bool:
        """Whether a branch holds attention."""
        inside = self._ancestors(branch, self._above[last.node])
        return any(node.op_type == "Softmax" or "Attention" in node.op_type for node in inside)

    def _product(self, branch: ir.Value, last: _Sum) -> ir.Value | None:
        """The last product with a matrix that a branch runs through, its bias included."""
        for node in self._dominators(branch):
            if node is self._above[last.node]:
                return None
            if _is_product(node) and sum(map(self._depends, values_read(node))) == 1:
                return self._behind(node)
        return None

    def _behind(self, product: ir.Node) -> ir.Value | None:
        """What a product gives, [batch, tokens, hidden], with its bias."""
        value = product.outputs[0]
        users = value.consumers()
        user = users[0] if len(users) == 1 else None
        if user is None:
            return None if product.op_type == "Gemm" else value
        if product.op_type == "Gemm":  # which knows rows only
            return user.outputs[0] if user.op_type == "Reshape" else None
        if user.op_type == "Add" and sum(map(self._depends, values_read(user))) == 1:
            return user.outputs[0]
        return value

    def _dominators(self, value: ir.Value) -> Iterator[ir.Node]:
        """The nodes that all paths from the tokens to a value run through, from the last."""
        node = value.producer()
        while node is not None:
            yield node
            node = self._above.get(node)

    def _ancestors(self, value: ir.Value, stop: ir.Node | None) -> Iterator[ir.Node]:
        """The nodes of tokens that a value is computed by; not `stop`, nor what only it needs."""
        seen = {stop}
        waiting = [value.producer()]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen or node not in self._above:
                continue
            seen.add(node)
            yield node
            waiting.extend(one.producer() for one in values_read(node))

    def _common(self, one: ir.Node | None, other: ir.Node | None) -> ir.Node | None:
        """The last dominator of both nodes; None is the input of tokens."""
        while one is not other:
            if self._depth[one] >= self._depth[other]:
                one = self._above[one] if one is not None else None
            else:
                other = self._above[other] if other is not None else None
        return one

    def _depends(self, value: ir.Value) -> bool:
        return value in self._dependent

    def _named(self, values: Sequence[ir.Value], name: str, kind: str) -> ir.Value:
        for value in values:
            if value.name == name:
                return value
        raise self._unknown(f"an {kind} {name!r}", [value.name for value in values][:8])

    def _unknown(self, expected: str, found: object) -> CheckpointError:
        return CheckpointError(
            f"{self.source}: not a transformer's graph as it is known here: looked for {expected}, "
            f"found {found}"
        )


def _is_product(node: ir.Node) -> bool:
    return any(part in node.op_type for part in _PRODUCTS)


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


def values_read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, each value once; also what the graphs inside it read from outside."""
    seen: set[ir.Value] = set()
    for inner in (node, *_inside(node)):
        for value in inner.inputs:
            if value is not None and value not in seen:
                seen.add(value)
                yield value


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the graphs that a node holds."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield inner
                yield from _inside(inner)
