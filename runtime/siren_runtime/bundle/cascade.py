"""What guard.json says of exits: heads at earlier depths, which decide the clear texts.

The graph of whole texts is cut behind the blocks that each exit reads. cascade.0 takes the tokens,
gives the first exit's score, and what the blocks behind it need: the states that are kept. Each
further segment goes on from these, and the last gives what the graph of whole texts gives.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from siren_runtime.errors import BundleError

from .graphs import (
    BATCH,
    CHUNK,
    STREAM_HEAD,
    CacheSpec,
    Contract,
    GraphSpec,
    Heads,
    Shape,
    TensorSpec,
    cascade_name,
    check_contract,
    exit_spec,
    head_graph,
    names,
    score_graph,
    stream_graph,
    stream_name,
    sums_spec,
)
from .heads import HeadSpec, check_head
from .types import Positive, Probability, Size, Strict


class Exit(Strict, frozen=True):
    """A head that reads the first `depth` blocks, and may decide behind them.

    It calls a text safe where its score is at most `low`, and harmful from `high` on; None: never.
    """

    depth: Positive
    head: HeadSpec
    low: Probability | None = None
    high: Probability | None = None

    @property
    def decides(self) -> bool:
        """Whether it decides on any text."""
        return self.low is not None or self.high is not None


class Cascade(Strict, frozen=True):
    """The exits of a bundle, by rising depth, and what their bounds hold for.

    `cutoffs` are the thresholds, ascending, on whose sides the bounds were chosen to leave texts:
    the primary head's and those of its tiers. There are none until `siren calibrate --cascade` has
    chosen bounds, and then no exit decides. `loss` is how much macro-F1 may be lost (0 to 1) on
    the `rows` rows that they were chosen on, `cost` the share of the blocks that these needed.
    """

    exits: list[Exit]
    cutoffs: list[Probability] = msgspec.field(default_factory=list)
    loss: float = 0.0
    rows: Size = 0
    cost: Probability = 1.0

    @property
    def decides(self) -> bool:
        """Whether an exit decides on any text."""
        return bool(self.cutoffs) and any(one.decides for one in self.exits)

    @property
    def graphs(self) -> list[str]:
        """The names of the segments' graphs, in order."""
        return [cascade_name(number) for number in range(len(self.exits) + 1)]

    @property
    def stream_graphs(self) -> list[str]:
        """As `graphs`, of the segments of the streaming graph, where the bundle has them."""
        return [stream_name(number) for number in range(len(self.exits) + 1)]


def check_cascade(
    cascade: Cascade, heads: Heads, blocks: int, cutoffs: Sequence[float], origin: str
) -> None:
    """Refuse exits that contradict themselves or the bundle.

    Args:
        heads: of the bundle.
        blocks: that the bundle has.
        cutoffs: the thresholds of the primary head and its tiers, ascending.

    Raises:
        BundleError: they do.
    """
    what = f"{origin}: cascade"
    if len(heads) > 1 or not all(map(_tells_harm, heads.values())):
        raise BundleError(f"{what} is for one head that tells harm, found {', '.join(heads)}")
    depths = [one.depth for one in cascade.exits]
    if not depths or sorted(set(depths)) != depths or depths[-1] >= blocks:
        raise BundleError(
            f"{what}.exits must ascend in depth and end before block {blocks}, found {depths}"
        )
    for one in cascade.exits:
        check_head(f"exit.{one.depth}", one.head, one.depth, origin)
        if not _tells_harm(one.head):
            raise BundleError(f"{what}: the exit at {one.depth} is no head that tells harm")
        if one.low is not None and one.high is not None and one.low >= one.high:
            raise BundleError(
                f"{what}: the exit at {one.depth} calls texts safe up to {one.low} and harmful "
                f"from {one.high}; the first must be lower"
            )
    if cascade.cutoffs and cascade.cutoffs != list(cutoffs):
        raise BundleError(
            f"{what}: the exits' bounds are for thresholds of {cascade.cutoffs}, but the head's "
            f"are {list(cutoffs)}; choose them anew with siren calibrate --cascade"
        )


def _tells_harm(head: HeadSpec) -> bool:
    return head.activation == "softmax" and head.classes == 2


def check_segments(
    cascade: Cascade, heads: Heads, graphs: Mapping[str, GraphSpec], origin: str
) -> None:
    """Refuse segments that do not go on from what those before them keep.

    Raises:
        BundleError: one is missing, or has other inputs or outputs.
    """
    whole = score_graph(heads)
    exits = [Contract(whole.inputs, (exit_spec(one.depth),)) for one in cascade.exits]
    _check_there(cascade.graphs, graphs, origin)
    parts = dict(zip(cascade.graphs, [*exits, whole], strict=True))
    _check_parts(parts, [BATCH], graphs, origin)


def stream_parts(head: HeadSpec, neurons: Mapping[int, int], cache: CacheSpec) -> list[Contract]:
    """The contracts of the segments of the streaming graph, but for the states that are kept.

    Args:
        neurons: of each segment, by the blocks that it ends behind, ascending; the last one's end
            is the head's.
    """
    whole = stream_graph(head, sum(neurons.values()), cache)
    count = len(whole.inputs) - cache.buffers  # of the inputs before the cache
    parts = []
    for start, stop in pairwise([0, *neurons]):
        own = slice(2 * start, 2 * stop)
        scores = [TensorSpec(exit_spec(stop).name, "float32", [BATCH, CHUNK])]
        if stop == max(neurons):
            scores = [*whole.outputs[:2]]
        sums = [sums_spec(stop, neurons[stop])] if neurons[stop] else []
        inputs = (*whole.inputs[:count], *cache.past[own])
        parts.append(Contract(inputs, (*scores, *sums, *cache.present[own])))
    return parts


def check_stream_segments(
    cascade: Cascade,
    heads: Heads,
    cache: CacheSpec,
    graphs: Mapping[str, GraphSpec],
    origin: str,
) -> None:
    """As `check_segments`, of those of the streaming graph, which are there or are not.

    Args:
        cache: of the streaming graph.
    """
    needed = [*cascade.stream_graphs, STREAM_HEAD]
    if not any(name in graphs for name in needed):
        return
    _check_there(needed, graphs, origin)
    neurons = summed_neurons(cascade, cache.blocks, graphs)
    head = next(iter(heads.values()))
    parts = dict(zip(cascade.stream_graphs, stream_parts(head, neurons, cache), strict=True))
    _check_parts(parts, [BATCH, CHUNK], graphs, origin)
    contract = head_graph(heads, sum(neurons.values()))
    _check_parts({STREAM_HEAD: contract}, [BATCH], graphs, origin)


def summed_neurons(
    cascade: Cascade, blocks: int, graphs: Mapping[str, GraphSpec]
) -> dict[int, int]:
    """How many neurons each segment of the streaming graph sums, by the depth that it ends at.

    Args:
        blocks: that the streaming graph has.
    """
    neurons = dict.fromkeys([*(one.depth for one in cascade.exits), blocks], 0)
    for name, depth in zip(cascade.stream_graphs, neurons, strict=True):
        for spec in graphs[name].outputs:
            size = spec.shape[-1] if spec.shape else 0
            if spec.name == sums_spec(depth, 0).name and isinstance(size, int):
                neurons[depth] = size
    return neurons


def _check_there(needed: Sequence[str], graphs: Mapping[str, GraphSpec], origin: str) -> None:
    for name in needed:
        if name not in graphs:
            raise BundleError(f"{origin}: the exits need a graph {name!r}, which graphs lacks")


def _check_parts(
    parts: Mapping[str, Contract], rows: Shape, graphs: Mapping[str, GraphSpec], origin: str
) -> None:
    """Check segments by name, and the states between them, whose shape begins as `rows`."""
    kept: dict[str, TensorSpec] = {}
    for name, part in parts.items():
        graph = graphs[name]
        own = {*names(part.outputs)}
        states = {spec.name: spec for spec in graph.outputs if spec.name not in own}
        taken = [kept[spec.name] for spec in graph.inputs if spec.name in kept]
        expected = Contract((*part.inputs, *taken), (*part.outputs, *states.values()))
        check_contract(graphs, name, expected, origin)
        for spec in states.values():
            if spec.dtype != "float32" or spec.shape[: len(rows)] != rows or spec.name in kept:
                raise BundleError(
                    f"{origin}: graphs.{name} keeps {spec.name!r}, {spec.dtype} {spec.shape}; a "
                    "state that is kept is float32, once, with a row for each text"
                    f"{' and token' if CHUNK in rows else ''}"
                )
        kept |= states
