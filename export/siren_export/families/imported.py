"""A backbone whose graph somebody else wrote, taken as it is up to the deepest block that is read.

Its inputs beside token ids and their mask are what they are where a text stands alone and is padded
to the right: positions from 0 up, one segment, and empty caches. A model that counts positions
otherwise is refused where they are an input; and so is one that would read padding as text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from siren_export.graph.builder import FLOAT, INT64, GraphBuilder
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.taps import Taps
from siren_export.graph.weights import BackboneWeights, Weight
from siren_export.sources.onnx_blocks import SHAPES, TransformerGraph, values_read
from siren_export.sources.onnx_file import OnnxFile, stored_bytes
from siren_runtime.errors import CheckpointError

_INSIDE = 1024  # bytes; what is smaller stays in the graph, where shapes are computed of it
# Models that count positions from behind the padding token's id on, as RoBERTa does.
_BEHIND_PADDING = frozenset(
    {
        "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
        "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
        "xmod",
    }
)  # fmt: skip
_FROM_TWO = frozenset({"mra", "nystromformer", "yoso"})  # with two more rows than positions


@dataclass(frozen=True, eq=False)
class ImportedBackbone:
    """A `StateSource` over an ONNX file."""

    file: OnnxFile

    @property
    def model_type(self) -> str:
        """As in config.json."""
        return str(self.file.config["model_type"])

    @property
    def hidden_size(self) -> int:
        """The channels of the residual stream."""
        return self.file.channels

    @property
    def vocab_size(self) -> int | None:
        """The rows of the token embedding; None where the graph does not show them."""
        return self.file.vocab_size

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return self.file.blocks

    @property
    def causal(self) -> bool:
        """Whether a token sees none after it: where there is a cache, or the config says so."""
        names = self.file.config.get("architectures") or []
        return bool(self.file.caches) or any("CausalLM" in str(name) for name in names)

    @property
    def context_length(self) -> None:
        """There is no stream."""
        return

    def check_max_length(self, max_length: int, origin: str) -> None:
        """As `StateSource.check_max_length`: the config must have a position for every token."""
        positions, padding = self.file.positions, self.file.config.get("pad_token_id", 1)
        counted = self.model_type in _BEHIND_PADDING and isinstance(padding, int)
        unused = padding + 1 if counted else 0
        if positions is not None and max_length > positions - unused:
            less = f" less {unused}, where positions start" if unused else ""
            raise CheckpointError(
                f"{origin}: the head's max_length {max_length} exceeds the {positions} positions "
                f"of the config{less}; lower inference.max_length in the artifact"
            )

    def author(
        self,
        g: GraphBuilder,
        weights: BackboneWeights,
        input_ids: ir.Value,
        attention_mask: ir.Value | None,
        taps: Taps,
        max_length: int,
        cache: KeyValueCache | None = None,
    ) -> dict[int, ir.Value]:
        """As `StateSource.author`: the nodes that the states are computed by, moved into `g`."""
        assert attention_mask is not None  # there is no stream
        model = self.file.load()
        graph = model.graph
        found = TransformerGraph(graph, str(self.file.path), self.file.tokens, self.file.result)
        blocks = found.blocks(self.file.blocks, self.file.caches)
        states = {block: blocks[block].state(taps.state) for block in taps.channels}
        graph.outputs.clear()
        nodes = _needed(graph, states.values())
        if not self.causal:
            self._check_mask(graph, nodes, states.values())
        read = {value for node in nodes for value in values_read(node)}
        with g.scope("inputs"):
            for value in graph.inputs:
                if value in read and value.const_value is None:
                    value.replace_all_uses_with(self._input(g, value, input_ids, attention_mask))
        with g.scope("backbone"):
            for name, value in graph.initializers.items():
                if value in read and value.const_value is not None:
                    made = self._weight(g, name, value.const_value, weights)
                    value.replace_all_uses_with(made)
            graph.remove(nodes)
            g.splice(nodes, model.opset_imports)
        return {block: g.cast(state, FLOAT) for block, state in states.items()}

    def _check_mask(
        self, graph: ir.Graph, nodes: Iterable[ir.Node], states: Iterable[ir.Value]
    ) -> None:
        """Refuse a graph in which each token sees all of a row, padding too.

        Raises:
            CheckpointError: a state does not depend on what the mask says; its shape says nothing.
        """
        told = {value for value in graph.inputs if value.name == self.file.mask}
        for node in nodes:
            if node.op_type not in SHAPES and not told.isdisjoint(values_read(node)):
                told.update(node.outputs)
        if not told.issuperset(states):
            raise CheckpointError(
                f"{self.file.path}: what the head reads does not depend on an input "
                f"{self.file.mask!r}, so in a batch padding would count as text; export the graph "
                "with that input, or, where a token sees none after it, with a config whose "
                "architectures name a ...ForCausalLM"
            )

    def _input(
        self, g: GraphBuilder, value: ir.Value, input_ids: ir.Value, mask: ir.Value
    ) -> ir.Value:
        """What an input of the graph is, in its own dtype."""
        name, dtype, shape = str(value.name), value.dtype, list(value.shape or ())
        size = g.op("Shape", input_ids)
        made: ir.Value | None = None
        if len(shape) == 2 and name == self.file.tokens:
            made = input_ids
        elif len(shape) == 2 and name == self.file.mask:
            made = mask
        elif len(shape) == 2 and name == "token_type_ids":
            made = g.op("Expand", g.const(0), size)
        elif len(shape) == 2 and name == "position_ids":
            self._check_positions()
            counted = g.op("CumSum", g.op("Expand", g.const(1), size), g.const(1))
            made = g.op("Sub", counted, g.const(1))
        elif name.startswith("past") and (sizes := self.file.sizes_of_cache(shape)) is not None:
            rest = g.const([sizes[0], 0, sizes[1]])
            batch = g.op("Slice", size, g.const([0]), g.const([1]))
            made = g.op("Expand", g.const(0), g.op("Concat", batch, rest, axis=0))
        if made is None or dtype is None:
            raise CheckpointError(
                f"{self.file.path}: looked for inputs {self.file.tokens}, {self.file.mask}, "
                f"position_ids, token_type_ids and past keys and values, found {name!r} {shape}, "
                "of which it is not known what it should be"
            )
        return made if dtype == INT64 else g.cast(made, dtype)

    def _check_positions(self) -> None:
        """Refuse a model whose first position is not 0."""
        if self.model_type in _BEHIND_PADDING | _FROM_TWO:
            raise CheckpointError(
                f"{self.file.path}: has an input 'position_ids', and a {self.model_type} does not "
                "count positions from 0, so its own are not known here; export the graph without "
                "that input, so that it counts them itself"
            )

    def _weight(
        self, g: GraphBuilder, name: str, tensor: ir.TensorProtocol, weights: BackboneWeights
    ) -> ir.Value:
        """An initializer of the graph as a weight of `g`, or inside of it where it is small."""
        dtype, shape = tensor.dtype, tuple(tensor.shape.numpy())
        if dtype.bitwidth >= 8 and tensor.nbytes < _INSIDE:
            values = stored_bytes(self.file, tensor).view(dtype.numpy()).reshape(shape)
            return g.inside(name, ir.Tensor(values.copy(), dtype=dtype))

        def blocks() -> Iterator[np.ndarray]:
            packed = dtype.bitwidth < 8  # several in a byte
            yield stored_bytes(self.file, tensor) if packed else weights.source.read(name)

        return g.weight(name, Weight(dtype, shape, blocks))


def _needed(graph: ir.Graph, states: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that states are computed by, in their order."""
    found: list[ir.Node] = []
    needed = set(states)
    for node in reversed(graph):
        if not needed.isdisjoint(node.outputs):
            found.append(node)
            needed.update(values_read(node))
    return found[::-1]
