"""cascade.N.onnx: score.onnx with exits, cut into segments that go on from each other's states.

It is authored whole, lowered whole, and then cut, so that each segment computes what the whole
graph does, and weights have the names that they have in score.onnx.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import onnx_ir as ir

from siren_export.families.base import StateSource
from siren_export.graph.builder import GraphBuilder, GuardGraph, Output
from siren_export.graph.weights import BackboneWeights
from siren_export.heads.base import Artifact
from siren_export.heads.pooling import Channels, mean
from siren_export.heads.together import HeadSet
from siren_export.passes.cut import cut
from siren_export.sources.weights import WeightSource
from siren_runtime.bundle.graphs import (
    ATTENTION_MASK,
    BATCH,
    INPUT_IDS,
    SEQUENCE,
    Contract,
    cascade_name,
    exit_spec,
    names,
    score_graph,
)

from .contract import add_inputs


def author_cascade(
    artifact: Artifact, backbone: StateSource, weights: WeightSource, compute: ir.DataType
) -> GuardGraph:
    """Author the graph of whole texts with the score of each exit beside.

    `author_score` has checked that head and backbone fit.

    Args:
        compute: the dtype of matrix products and attention.
    """
    heads, contract = all_heads(artifact), _contract(artifact)
    g = GraphBuilder(compute, backbone.causal)
    inputs = add_inputs(g, contract)
    input_ids, mask = inputs[INPUT_IDS], inputs[ATTENTION_MASK]
    tensors = BackboneWeights(weights)
    states = backbone.author(g, tensors, input_ids, mask, heads.taps, artifact.max_length)

    outputs: dict[str, Output] = {}
    for depth, own in read_in_turn(g, artifact, lambda _, c: mean(g, c, states, mask), axis=1):
        if depth in artifact.exits:
            with g.scope(scope_of(depth)):
                score, _ = artifact.exits[depth].head.classify(g, own)
            outputs[exit_spec(depth).name] = Output(score, exit_spec(depth).shape)
    score, logits = artifact.head.classify(g, own)
    values = score, logits, artifact.head.features(g, own)
    for spec, value in zip(contract.outputs, values, strict=True):
        outputs[spec.name] = Output(value, spec.shape)
    return g.build("cascade", outputs)


def segments(graph: GuardGraph, artifact: Artifact, backbone: StateSource) -> dict[str, GuardGraph]:
    """Cut the lowered graph behind each exit; return the segments by the manifest's names."""
    outputs = [[exit_spec(depth).name] for depth in artifact.exits]
    outputs.append(names(_contract(artifact).outputs))
    inputs = [names(_contract(artifact).inputs)] * len(outputs)
    sizes = {f"{scope_of(d)}/pooling/mean": size_of(c) for d, c in between_exits(artifact).items()}

    def shape(name: str) -> list[int | str]:
        return [BATCH, sizes[name]] if name in sizes else [BATCH, SEQUENCE, backbone.hidden_size]

    found = cut(graph, inputs, outputs, shape)
    return {cascade_name(number): segment for number, segment in enumerate(found)}


def _contract(artifact: Artifact) -> Contract:
    return score_graph({artifact.name: artifact.head.spec})


def all_heads(artifact: Artifact) -> HeadSet:
    """The head, and each exit by its depth."""
    exits = {str(depth): found.head for depth, found in artifact.exits.items()}
    return HeadSet({artifact.name: artifact.head, **exits})


def between_exits(artifact: Artifact) -> dict[int, Channels]:
    """What is pooled of the blocks between two exits, by the depth that they end at."""
    taps = all_heads(artifact).taps
    ends = [0, *artifact.exits, taps.deepest + 1]
    return {
        end: {block: taps.channels[block] for block in range(start, end) if block in taps.channels}
        for start, end in pairwise(ends)
    }


def read_in_turn(
    g: GraphBuilder,
    artifact: Artifact,
    pool: Callable[[int, Channels], ir.Value],
    axis: int,
) -> Iterator[tuple[int, ir.Value]]:
    """Pool what stands between two exits once, for all heads that read it.

    Args:
        pool: authors what is pooled of the blocks that end at a depth.
        axis: of the neurons in it.

    Yields:
        The depth of each exit, and at last the head's, and its neurons of those pooled so far.
    """
    heads = all_heads(artifact)
    pooled: list[ir.Value] = []
    for depth, channels in between_exits(artifact).items():
        name = str(depth) if depth in artifact.exits else artifact.name
        with g.scope(scope_of(depth)):
            if channels:
                pooled.append(pool(depth, channels))
            together = pooled[0] if len(pooled) == 1 else g.op("Concat", *pooled, axis=axis)
            own = g.op("Gather", together, g.table("neurons", heads.places(name)), axis=axis)
        yield depth, own


def size_of(channels: Channels) -> int:
    """How many neurons those are."""
    return sum(chosen.size for chosen in channels.values())


def scope_of(depth: int) -> str:
    """Where in the graph an exit stands, and what is pooled for it."""
    return f"exits.{depth}"
