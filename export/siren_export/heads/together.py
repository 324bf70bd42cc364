"""The heads of one bundle: they read one pass of the backbone, and share what is pooled of it.

pooled     = what all heads read together, the first head's neurons before the others' in each block
of a head  = its own neurons of that, in its own order
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siren_export.graph.builder import GraphBuilder
from siren_export.graph.taps import Taps
from siren_runtime.bundle.graphs import (
    FEATURES,
    LAYER_WEIGHTS,
    LOGITS,
    NEURONS,
    SCORE,
    output_name,
)
from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.errors import ArtifactError

from .base import Artifact, Head, LinearFirst
from .pooling import mean, running_mean, span_means


@dataclass(frozen=True)
class HeadSet:
    """Heads by name, the primary one first. What they read is authored once for all of them."""

    heads: Mapping[str, Head]

    @property
    def specs(self) -> dict[str, HeadSpec]:
        """What the manifest says of each."""
        return {name: head.spec for name, head in self.heads.items()}

    @cached_property
    def taps(self) -> Taps:
        """What they read together: of each block the channels of the first head that reads it, then
        those that the others add.
        """
        all_taps = [head.taps for head in self.heads.values()]
        if len(all_taps) == 1:
            return all_taps[0]
        channels: dict[int, NDArray[np.int64]] = {}
        for block in sorted({block for taps in all_taps for block in taps.channels}):
            read = [taps.channels[block] for taps in all_taps if block in taps.channels]
            channels[block] = np.array(list(dict.fromkeys(np.concatenate(read).tolist())), np.int64)
        return Taps(all_taps[0].state, channels)

    @property
    def neurons(self) -> int:
        """How many that are."""
        return sum(channels.size for channels in self.taps.channels.values())

    def pool(
        self, g: GraphBuilder, states: Mapping[int, ir.Value], attention_mask: ir.Value
    ) -> ir.Value:
        """As `Head.pool`, of what all heads read: float32 [batch, neurons]."""
        if len(self.heads) == 1:
            return self._primary.pool(g, states, attention_mask)
        return mean(g, self.taps.channels, states, attention_mask)

    def pool_spans(
        self, g: GraphBuilder, states: Mapping[int, ir.Value], spans: ir.Value
    ) -> ir.Value:
        """Author the mean of what all heads read over the tokens of spans.

        Args:
            states: block -> float32 [batch, sequence, hidden].
            spans: float32 [batch, spans, sequence], as the graph of spans takes them.

        Returns:
            float32 [batch x spans, neurons]. Only of heads that pool the mean.
        """
        return span_means(g, self.taps.channels, states, spans)

    def pool_prefixes(
        self,
        g: GraphBuilder,
        states: Mapping[int, ir.Value],
        feature_sum: ir.Value,
        feature_count: ir.Value,
    ) -> tuple[ir.Value, ir.Value]:
        """As `Head.pool_prefixes`, of what all heads read: float32 [batch, chunk, neurons]."""
        if len(self.heads) == 1:
            return self._primary.pool_prefixes(g, states, feature_sum, feature_count)
        return running_mean(g, self.taps.channels, states, feature_sum, feature_count)

    @cached_property
    def projection(self) -> NDArray[np.float32] | None:
        """The heads' first matrices side by side, where they make fewer numbers of the neurons.

        Float32 [neurons, width]: what it makes of each token can be pooled in their place. None
        where a head has none, or nothing is saved.
        """
        parts = []
        for name, head in self.heads.items():
            if not isinstance(head, LinearFirst):
                return None
            own = head.projection
            part = np.zeros((self.neurons, own.shape[1]), np.float32)
            part[self.places(name)] = own
            parts.append(part)
        joined = np.concatenate(parts, axis=1)
        return joined if joined.shape[1] < joined.shape[0] else None

    @property
    def projected_specs(self) -> dict[str, HeadSpec]:
        """What the manifest says of each where `projection` was applied: it reads what that gives.

        There is a projection.
        """
        return {
            name: msgspec.structs.replace(head.spec, features=head.projection.shape[1])
            for name, head in self.heads.items()
            if isinstance(head, LinearFirst)
        }

    def projected_outputs(self, g: GraphBuilder, projected: ir.Value) -> dict[str, ir.Value]:
        """As `outputs`, over pooled neurons times `projection`, float32 [batch, width]."""
        found: dict[str, ir.Value] = {}
        specs, start = self.projected_specs, 0
        for name, head in self.heads.items():
            assert isinstance(head, LinearFirst)  # there is a projection
            stop = start + specs[name].features
            with self._scope(g, name):
                own = g.op("Slice", projected, g.const([start]), g.const([stop]), g.const([1]))
                score, logits = head.classify_projected(g, own)
            outputs = {SCORE: score, LOGITS: logits, FEATURES: own}
            found |= {output_name(specs, name, part): value for part, value in outputs.items()}
            start = stop
        return found

    def outputs(self, g: GraphBuilder, pooled: ir.Value) -> dict[str, ir.Value]:
        """Author all heads over pooled float32 [batch, neurons]; return what they give by name."""
        found: dict[str, ir.Value] = {}
        specs = self.specs
        for name, head in self.heads.items():
            with self._scope(g, name):
                own = self._own(g, name, pooled)
                outputs = {FEATURES: head.features(g, own)}
                outputs[SCORE], outputs[LOGITS] = head.classify(g, own)
            found |= {output_name(specs, name, part): value for part, value in outputs.items()}
        return found

    def classify_primary(self, g: GraphBuilder, pooled: ir.Value) -> tuple[ir.Value, ir.Value]:
        """As `Head.classify` of the primary head, over pooled float32 [batch, neurons]."""
        name = next(iter(self.heads))
        return self._primary.classify(g, self._own(g, name, pooled))

    def _own(self, g: GraphBuilder, name: str, pooled: ir.Value) -> ir.Value:
        """A head's neurons of the pooled ones."""
        places = self.places(name)
        if np.array_equal(places, np.arange(self.neurons)):
            return pooled
        return g.op("Gather", pooled, g.table("neurons", places), axis=1)

    def _scope(self, g: GraphBuilder, name: str) -> AbstractContextManager[None]:
        """Further heads have names of their own in the graph."""
        return nullcontext() if name == next(iter(self.heads)) else g.scope(f"heads.{name}")

    def explain(
        self, g: GraphBuilder, name: str, features: ir.Value, direction: ir.Value
    ) -> dict[str, ir.Value]:
        """Author a head's gradients, as `Head.explain`, and what its features are."""
        head = self.heads[name]
        with self._scope(g, name):
            own = head.explain(g, features, direction)
            blocks = [np.full(c.size, block) for block, c in head.taps.channels.items()]
            channels = np.concatenate([*head.taps.channels.values()])
            read = np.stack([np.concatenate(blocks), channels, self.places(name)], axis=1)
            return {
                **own,
                NEURONS: g.table("explained_neurons", read.astype(np.int64)),
                LAYER_WEIGHTS: g.table("explained_weights", head.layer_weights),
            }

    def places(self, name: str) -> NDArray[np.int64]:
        """Where a head's neurons stand among the pooled ones, int64 [n_features]."""
        found, start = [], 0
        own = self.heads[name].taps.channels
        for block, channels in self.taps.channels.items():
            if block in own:
                place = {channel: start + i for i, channel in enumerate(channels.tolist())}
                found += [place[channel] for channel in own[block].tolist()]
            start += channels.size
        return np.array(found, np.int64)

    @property
    def _primary(self) -> Head:
        return next(iter(self.heads.values()))


def head_set(artifact: Artifact) -> HeadSet:
    """The heads of an artifact, and of those that are to be read with it."""
    further = {name: other.head for name, other in artifact.further.items()}
    return HeadSet({artifact.name: artifact.head, **further})


def together(artifacts: Mapping[str, Artifact]) -> Artifact:
    """Join heads, by name, that are to be read from one pass; the first is the primary one.

    Raises:
        ArtifactError: they do not read the same of a text.
    """
    (name, first), *others = artifacts.items()
    for other_name, other in others:
        for what, found, expected in (
            ("pools", other.head.spec.pooling, first.head.spec.pooling),
            ("has a max_length of", other.max_length, first.max_length),
        ):
            if found != expected:
                raise ArtifactError(
                    f"{other.source}: the head {other_name!r} {what} {found}, but {name!r} of "
                    f"{first.source} {expected}; heads of one bundle read the same pass, so export "
                    "this one into a bundle of its own"
                )
    if others and not first.head.spec.pools_mean:
        raise ArtifactError(
            f"{first.source}: heads that read the last token are exported one by one"
        )
    return replace(first, name=name, further=dict(others))
