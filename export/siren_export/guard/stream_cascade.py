"""stream.N.onnx: stream.onnx with exits, cut into segments as score.onnx is (`cascade`).

Each has the cache of its own blocks, and sums its own neurons.
"""

from itertools import accumulate, pairwise

import onnx_ir as ir

from siren_export.families.base import Backbone
from siren_export.graph.builder import FLOAT, GraphBuilder, GuardGraph
from siren_export.graph.weights import BackboneWeights
from siren_export.heads.base import Artifact
from siren_export.heads.pooling import Channels, running_mean
from siren_export.passes.cut import cut
from siren_export.sources.weights import WeightSource
from siren_runtime.bundle.cascade import stream_parts
from siren_runtime.bundle.graphs import (
    BATCH,
    CHUNK,
    FEATURE_COUNT,
    FEATURE_SUM,
    FEATURES,
    INPUT_IDS,
    LOGITS,
    POOLED,
    SCORE,
    CacheSpec,
    Contract,
    exit_spec,
    head_graph,
    names,
    stream_graph,
    stream_name,
    sums_spec,
)

from .cascade import all_heads, between_exits, read_in_turn, scope_of, size_of
from .contract import add_inputs, build
from .stream import cache_of, cache_spec


def author_stream_cascade(
    artifact: Artifact,
    backbone: Backbone,
    weights: WeightSource,
    compute: ir.DataType,
    context: int,
) -> GuardGraph:
    """Author the streaming graph with the score of each exit beside, of each prefix too.

    Args:
        compute, context: as `siren_export.guard.stream.author_stream`.
    """
    heads = all_heads(artifact)
    cached = cache_spec(backbone, heads.taps.deepest + 1, compute, context)
    contracts = _contracts(artifact, cached)
    g = GraphBuilder(compute, backbone.causal)
    contract = stream_graph(artifact.head.spec, heads.neurons, cached)
    contract = Contract(contract.inputs, tuple(o for part in contracts for o in part.outputs))
    inputs = add_inputs(g, contract)
    input_ids = inputs[INPUT_IDS]
    cache = cache_of(backbone, inputs, [*artifact.exits])
    tensors = BackboneWeights(weights)
    states = backbone.author(g, tensors, input_ids, None, heads.taps, context, cache)
    columns = _columns(artifact)
    names_of_sums = {depth: sums_spec(depth, 0).name for depth in columns}
    values: dict[str, ir.Value] = {}

    def prefixes(depth: int, channels: Channels) -> ir.Value:
        start, stop = (g.const([place]) for place in columns[depth])
        before = g.op("Slice", inputs[FEATURE_SUM], start, stop, g.const([1]))
        sums, means = running_mean(g, channels, states, before, inputs[FEATURE_COUNT])
        values[names_of_sums[depth]] = sums
        return means

    shape = g.op("Shape", input_ids)
    for depth, own in read_in_turn(g, artifact, prefixes, axis=2):
        if depth in artifact.exits:
            head = artifact.exits[depth].head
            with g.scope(scope_of(depth)):
                rows = g.op("Reshape", own, g.const([-1, head.spec.features]))
                score, _ = head.classify(g, rows)
            values[exit_spec(depth).name] = g.op("Reshape", score, shape)
    spec = artifact.head.spec
    score, logits = artifact.head.classify(g, g.op("Reshape", own, g.const([-1, spec.features])))
    values[SCORE] = g.op("Reshape", score, shape)
    wide = g.op("Concat", shape, g.const([spec.classes]), axis=0)
    values[LOGITS] = g.op("Reshape", logits, wide)
    values |= cache.present
    return build(g, "stream", contract, values)


def author_stream_head(artifact: Artifact) -> GuardGraph:
    """Author the head alone, over the neurons that are pooled for the exits too."""
    heads = all_heads(artifact)
    contract = head_graph({artifact.name: artifact.head.spec}, heads.neurons)
    g = GraphBuilder(FLOAT)
    pooled = add_inputs(g, contract)[POOLED]
    with g.scope(scope_of(heads.taps.deepest + 1)):
        own = g.op("Gather", pooled, g.table("neurons", heads.places(artifact.name)), axis=1)
    score, logits = artifact.head.classify(g, own)
    outputs = {SCORE: score, LOGITS: logits, FEATURES: artifact.head.features(g, own)}
    return build(g, "head", contract, outputs)


def stream_segments(
    graph: GuardGraph, artifact: Artifact, backbone: Backbone, context: int
) -> dict[str, GuardGraph]:
    """Cut the lowered graph behind each exit; return the segments by the manifest's names."""
    deepest = all_heads(artifact).taps.deepest
    cached = cache_spec(backbone, deepest + 1, graph.compute, context)
    contracts = _contracts(artifact, cached)
    sizes = {f"{scope_of(d)}/pooling/means": size_of(c) for d, c in between_exits(artifact).items()}

    def shape(name: str) -> list[int | str]:
        return [BATCH, CHUNK, sizes.get(name, backbone.hidden_size)]

    inputs = [names(part.inputs) for part in contracts]
    outputs = [names(part.outputs) for part in contracts]
    found = cut(graph, inputs, outputs, shape)
    return {stream_name(number): segment for number, segment in enumerate(found)}


def _contracts(artifact: Artifact, cache: CacheSpec) -> list[Contract]:
    """Of each segment, but for the states that are kept."""
    neurons = {depth: size_of(channels) for depth, channels in between_exits(artifact).items()}
    return stream_parts(artifact.head.spec, neurons, cache)


def _columns(artifact: Artifact) -> dict[int, tuple[int, int]]:
    """Where the neurons between two exits stand among all, by the depth that they end at."""
    ranges = between_exits(artifact)
    places = pairwise(accumulate(map(size_of, ranges.values()), initial=0))
    return dict(zip(ranges, places, strict=True))
