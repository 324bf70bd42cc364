"""stream.onnx: a decoder guard that reads only the new tokens of a growing text.

It refers to the weights of score.onnx by the same names, so that a bundle holds them once.
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from siren_export.families.base import Backbone, StateSource
from siren_export.graph.attention import shorter
from siren_export.graph.builder import GraphBuilder, GuardGraph
from siren_export.graph.cache import KeyValueCache
from siren_export.graph.weights import BackboneWeights
from siren_export.heads.base import Artifact
from siren_export.heads.together import head_set
from siren_export.sources.weights import WeightSource
from siren_runtime.bundle.graphs import (
    FEATURE_COUNT,
    FEATURE_SUM,
    FEATURE_SUMS,
    INPUT_IDS,
    LOGITS,
    PAST_LENGTHS,
    SCORE,
    CacheSpec,
    stream_graph,
)

from .contract import add_inputs, build

# The rotary tables of a stream are made as long as it may get. What is longer than the context of
# most models has them grow with a number that hardly a machine has the memory to make use of: at
# this length SmolLM2's keys and values take 6 GB, and those of Qwen3-0.6B 30 GB.
LONGEST_STREAM = 131_072


def context_length(artifact: Artifact, backbone: StateSource) -> int | None:
    """How many tokens a stream may hold: the backbone's context, or `LONGEST_STREAM` of it.

    At least the head's limit. None where the backbone's family cannot stream.
    """
    context = backbone.context_length
    return None if context is None else max(min(context, LONGEST_STREAM), artifact.max_length)


def cache_spec(backbone: Backbone, blocks: int, compute: ir.DataType, context: int) -> CacheSpec:
    """What the first `blocks` blocks keep of a stream of up to `context` tokens."""
    windows = {b: w for b, w in shorter(backbone.windows, context).items() if b < blocks}
    dtype = compute.numpy().name
    return CacheSpec(blocks, backbone.kv_heads, backbone.head_dim, dtype, windows)


def cache_of(
    backbone: Backbone, inputs: Mapping[str, ir.Value], starts: Sequence[int] = ()
) -> KeyValueCache:
    """The cache that a streaming graph takes among its inputs.

    Args:
        starts: the blocks at which the graph is to be cut.
    """
    return KeyValueCache(
        heads=backbone.attention_heads,
        kv_heads=backbone.kv_heads,
        head_dim=backbone.head_dim,
        lengths=inputs[PAST_LENGTHS],
        past=inputs,
        starts=starts,
    )


def author_stream(
    artifact: Artifact,
    backbone: Backbone,
    weights: WeightSource,
    compute: ir.DataType,
    context: int,
) -> GuardGraph:
    """Author the incremental graph; its cache has the compute dtype.

    `author_score` has checked that head and backbone fit.

    Args:
        compute: the dtype of matrix products and attention.
        context: how many tokens a stream may hold.

    Raises:
        CheckpointError: a tensor is missing or of another shape than config.json says.
    """
    heads = head_set(artifact)
    taps = heads.taps
    cached = cache_spec(backbone, taps.deepest + 1, compute, context)
    contract = stream_graph(artifact.head.spec, heads.neurons, cached)
    g = GraphBuilder(compute, backbone.causal)
    inputs = add_inputs(g, contract)
    input_ids = inputs[INPUT_IDS]
    cache = cache_of(backbone, inputs)
    tensors = BackboneWeights(weights)
    states = backbone.author(g, tensors, input_ids, None, taps, context, cache)
    sums, pooled = heads.pool_prefixes(g, states, inputs[FEATURE_SUM], inputs[FEATURE_COUNT])
    rows = g.op("Reshape", pooled, g.const([-1, heads.neurons]))
    score, logits = heads.classify_primary(g, rows)
    shape = g.op("Shape", input_ids)
    classes = artifact.head.spec.classes
    outputs = {
        SCORE: g.op("Reshape", score, shape),
        LOGITS: g.op("Reshape", logits, g.op("Concat", shape, g.const([classes]), axis=0)),
        FEATURE_SUMS: sums,
    }
    return build(g, "stream", contract, {**outputs, **cache.present})
