"""score.onnx: a backbone up to its deepest tap, pooling and heads; spans.onnx, and head.onnx."""

import onnx_ir as ir

from siren_export.families.base import StateSource
from siren_export.graph.builder import FLOAT, GraphBuilder, GuardGraph
from siren_export.graph.weights import BackboneWeights
from siren_export.heads.base import Artifact
from siren_export.heads.together import head_set
from siren_export.heads.trajectory import TrajectoryHead
from siren_export.sources.weights import WeightSource
from siren_runtime.bundle.graphs import (
    ATTENTION_MASK,
    INPUT_IDS,
    POOLED,
    SPANS,
    head_graph,
    score_graph,
    spans_graph,
)
from siren_runtime.errors import ArtifactError

from .contract import add_inputs, build


def author_score(
    artifact: Artifact, backbone: StateSource, weights: WeightSource, compute: ir.DataType
) -> GuardGraph:
    """Author the whole-sequence graph: input_ids, attention_mask -> score, logits, features.

    Args:
        compute: the dtype of matrix products and attention.

    Raises:
        ArtifactError: the head reads blocks or channels that the backbone lacks.
        CheckpointError: a tensor is missing or of another shape than config.json says, or the
            backbone has a setting that the graphs do not.
    """
    for one in (artifact, *artifact.further.values()):
        _check_fits(one, backbone)
    backbone.check_max_length(artifact.max_length, weights.source)

    heads = head_set(artifact)
    contract = score_graph(heads.specs)
    g = GraphBuilder(compute, backbone.causal)
    inputs = add_inputs(g, contract)
    input_ids, mask = inputs[INPUT_IDS], inputs[ATTENTION_MASK]
    tensors = BackboneWeights(weights)
    states = backbone.author(g, tensors, input_ids, mask, heads.taps, artifact.max_length)
    return build(g, "guard", contract, heads.outputs(g, heads.pool(g, states, mask)))


def author_spans(
    artifact: Artifact, backbone: StateSource, weights: WeightSource, compute: ir.DataType
) -> GuardGraph:
    """Author the graph of whole texts and their spans, of a head that pools the mean.

    Arguments and errors as `author_score`, which checks them.
    """
    heads = head_set(artifact)
    contract = spans_graph(heads.specs)
    g = GraphBuilder(compute, backbone.causal)
    inputs = add_inputs(g, contract)
    input_ids, mask = inputs[INPUT_IDS], inputs[ATTENTION_MASK]
    tensors = BackboneWeights(weights)
    states = backbone.author(g, tensors, input_ids, mask, heads.taps, artifact.max_length)
    pooled = heads.pool_spans(g, states, inputs[SPANS])
    return build(g, SPANS, contract, heads.outputs(g, pooled))


def author_head_alone(artifact: Artifact) -> GuardGraph:
    """Author the heads over neurons that were pooled elsewhere."""
    heads = head_set(artifact)
    contract = head_graph(heads.specs, heads.neurons)
    g = GraphBuilder(FLOAT)
    return build(g, "head", contract, heads.outputs(g, add_inputs(g, contract)[POOLED]))


def author_projected_heads(artifact: Artifact) -> GuardGraph:
    """Author the heads over pooled neurons that were multiplied by `HeadSet.projection`."""
    heads = head_set(artifact)
    specs = heads.projected_specs
    contract = head_graph(specs, sum(spec.features for spec in specs.values()))
    g = GraphBuilder(FLOAT)
    return build(g, "head", contract, heads.projected_outputs(g, add_inputs(g, contract)[POOLED]))


def _check_fits(artifact: Artifact, backbone: StateSource) -> None:
    """Check the head's blocks and channels against the backbone's.

    Raises:
        ArtifactError: one is out of range.
    """
    taps = artifact.head.taps
    if taps.deepest >= backbone.blocks:
        raise ArtifactError(
            f"{artifact.source}: selected layer {taps.deepest} is out of range; the "
            f"backbone has blocks 0 to {backbone.blocks - 1}, so the head belongs to another one "
            f"(its own is {artifact.model_id!r})"
        )
    head = artifact.head
    if isinstance(head, TrajectoryHead) and head.hidden_size != backbone.hidden_size:
        raise ArtifactError(
            f"{artifact.source}: head.weight reads {head.hidden_size} channels, and the "
            f"backbone has {backbone.hidden_size}; the head reads all, so it belongs to another "
            f"one (its own is {artifact.model_id!r})"
        )
    for block, channels in taps.channels.items():
        channel = int(channels.max())
        if channel >= backbone.hidden_size:
            raise ArtifactError(
                f"{artifact.source}: layer {block} selects channel {channel}; the "
                f"backbone has channels 0 to {backbone.hidden_size - 1}, so the head belongs to "
                f"another one (its own is {artifact.model_id!r})"
            )
