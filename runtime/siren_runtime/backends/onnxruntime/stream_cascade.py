"""The segments of the streaming graph of a guard with exits, in ONNX Runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from siren_runtime.backends.outputs import (
    CacheArray,
    FloatArray,
    Outputs,
    StreamOutputs,
    TokenArray,
)
from siren_runtime.backends.process import OpeningProcess
from siren_runtime.bundle.cascade import stream_parts, summed_neurons
from siren_runtime.bundle.graphs import (
    LOGITS,
    SCORE,
    STREAM_HEAD,
    Contract,
    exit_spec,
    head_graph,
    names,
    sums_spec,
)
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.reader import Bundle

from .failures import EngineFailures
from .session import SessionRequest, open_sessions, run_head, token_budget
from .stream import CHUNK_TOKENS


@dataclass(frozen=True)
class StreamSegment:
    """One segment, which ends behind `depth` blocks.

    Attributes:
        buffers: those of the cache that are its blocks'.
        columns: where its neurons stand among all that are summed.
        taken: the states that it takes, [batch, chunk, size], and their sizes.
        made: those that it makes.
    """

    session: Any
    depth: int
    contract: Contract
    buffers: slice
    columns: slice
    taken: Mapping[str, int]
    made: Sequence[str]

    @property
    def is_last(self) -> bool:
        """Whether it gives the head's score, and not an exit's."""
        return self.contract.outputs[0].name == SCORE


@dataclass(frozen=True)
class SegmentOutputs:
    """What a segment gives for a chunk of each row.

    Attributes:
        score: [batch, chunk], of its exit; of the last one, of the head.
        logits: [batch, chunk, classes], of the head; None of the others.
        sums: [batch, chunk, neurons], of its own neurons.
        present: the keys and values of its blocks.
        states: what the segments behind it take, [batch, chunk, ...] by name.
    """

    score: FloatArray
    logits: FloatArray | None
    sums: FloatArray
    present: list[CacheArray]
    states: Mapping[str, FloatArray]


class CascadeStreamBackend:
    """A `StreamBackend` over segments, which can be run one by one.

    ONNX Runtime lets threads share it. It holds every weight once, as stream.onnx does. The neurons
    are those of the head and of all exits.
    """

    def __init__(self, bundle: Bundle, asked: SessionRequest) -> None:
        """Open the segments; arguments and errors as `OnnxRuntimeStreamBackend`."""
        manifest = bundle.manifest
        assert manifest.cascade is not None
        self.cascade = manifest.cascade
        (*sessions, self._head), self.name = open_sessions(
            bundle,
            [*self.cascade.stream_graphs, STREAM_HEAD],
            asked,
            in_turn=True,
            on_one_thread=[STREAM_HEAD],
        )
        self._process = OpeningProcess()
        self.token_budget = token_budget(self.name)
        self.head_spec, self.cache = manifest.head, manifest.stream_cache
        self.max_tokens = manifest.backbone.context_length or 0
        self.max_chunk = CHUNK_TOKENS
        self.segments = _segments(manifest, sessions)
        self.neurons = self.segments[-1].columns.stop
        self._head_outputs = names(head_graph(manifest.heads, self.neurons).outputs)

    def run(
        self,
        number: int,
        input_ids: TokenArray,
        past_lengths: TokenArray,
        past: Sequence[CacheArray],
        feature_sum: FloatArray,
        feature_count: TokenArray,
        states: Mapping[str, FloatArray],
        *,
        present: bool = True,
    ) -> SegmentOutputs:
        """Run one segment; arguments and errors as `StreamBackend.step`.

        Args:
            number: which one.
            past: of its own blocks.
            feature_sum: [batch, neurons], of all segments.
            states: those that it takes; the first one takes none.
        """
        self._process.check()
        segment = self.segments[number]
        batch, chunk = input_ids.shape
        values = input_ids, past_lengths, feature_sum, feature_count, *past
        feed = dict(zip(names(segment.contract.inputs), values, strict=True))
        feed |= {name: states[name] for name in segment.taken}
        wanted = names(segment.contract.outputs)
        new = len(past) if present else 0
        wanted = [*wanted[: len(wanted) - len(past) + new], *segment.made]
        with EngineFailures(
            lambda error: f"ONNX Runtime failed on {batch} streams by {chunk} tokens: {error}"
        ):
            found = dict(zip(wanted, segment.session.run(wanted, feed), strict=True))
        nothing = np.zeros((batch, chunk, 0), np.float32)
        return SegmentOutputs(
            found[SCORE if segment.is_last else exit_spec(segment.depth).name],
            found.get(LOGITS),
            found.get(sums_spec(segment.depth, 0).name, nothing),
            [found[spec.name] for spec in segment.contract.outputs[-len(past) :][:new]],
            {name: found[name] for name in segment.made},
        )

    def step(
        self,
        input_ids: TokenArray,
        past_lengths: TokenArray,
        past: Sequence[CacheArray],
        feature_sum: FloatArray,
        feature_count: TokenArray,
        *,
        present: bool = True,
    ) -> StreamOutputs:
        """Run all segments, as `StreamBackend.step`."""
        states: dict[str, FloatArray] = {}
        sums, new = [], []
        for number, segment in enumerate(self.segments):
            found = self.run(
                number,
                input_ids,
                past_lengths,
                past[segment.buffers],
                feature_sum,
                feature_count,
                states,
                present=present,
            )
            states |= found.states
            sums.append(found.sums)
            new += found.present
        assert found.logits is not None  # the last one's
        return StreamOutputs(found.score, found.logits, np.concatenate(sums, axis=-1), new)

    def head(self, pooled: FloatArray) -> Outputs:
        """Run the head alone, as `StreamBackend.head`."""
        self._process.check()
        return run_head(self._head, self._head_outputs, pooled)


def _segments(manifest: Manifest, sessions: Sequence[Any]) -> list[StreamSegment]:
    cascade, cache = manifest.cascade, manifest.stream_cache
    assert cascade is not None
    depths = [*(one.depth for one in cascade.exits), cache.blocks]
    graphs = [manifest.graphs[name] for name in cascade.stream_graphs]
    neurons = summed_neurons(cascade, cache.blocks, manifest.graphs)
    contracts = stream_parts(manifest.head, neurons, cache)
    found, column = [], 0
    for session, graph, contract, (start, stop) in zip(
        sessions, graphs, contracts, pairwise([0, *depths]), strict=True
    ):
        own_inputs, own_outputs = names(contract.inputs), names(contract.outputs)
        states = [spec for spec in graph.inputs if spec.name not in own_inputs]
        taken = {spec.name: size for spec in states if isinstance(size := spec.shape[-1], int)}
        made = [spec.name for spec in graph.outputs if spec.name not in own_outputs]
        columns = slice(column, column + neurons[stop])
        column = columns.stop
        buffers = slice(2 * start, 2 * stop)
        found.append(StreamSegment(session, stop, contract, buffers, columns, taken, made))
    return found
