"""Run a bundle's streaming graph and its head from plans that TensorRT or TensorRT-RTX compiled.

The past goes to the GPU from pinned host memory at each step: the caches lie in host memory, where
streams come, go and slide. Not run on a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from siren_runtime.backends.base import stream_inputs
from siren_runtime.backends.outputs import (
    CacheArray,
    FloatArray,
    Outputs,
    StreamOutputs,
    TokenArray,
)
from siren_runtime.backends.padding import OfThread
from siren_runtime.backends.shapes import (
    Choice,
    Extent,
    Profile,
    choose_profile,
    choose_stream_profile,
)
from siren_runtime.bundle.graphs import (
    INPUT_IDS,
    PAST_LENGTHS,
    POOLED,
    CacheSpec,
    Heads,
    head_graph,
    names,
    stream_graph,
)
from siren_runtime.bundle.reader import Bundle

from . import engine
from .gpu import compute_capability
from .library import Flavor, load_library
from .plan import find_plan

Arrays = Mapping[str, npt.NDArray[Any]]


class Runner(Protocol):
    """Runs one profile of a plan, for one thread."""

    def run(self, inputs: Arrays, extent: Extent, wanted: Sequence[str]) -> Arrays:
        """As `siren_runtime.backends.tensorrt.engine.Runner.run`."""


class Profiles:
    """A plan's profiles and what runs them."""

    def __init__(self, profiles: Sequence[Profile], open_runner: Callable[[int], Runner]) -> None:
        """Take profile number -> runner."""
        self.profiles = list(profiles)
        self._runners = OfThread(open_runner)

    def rows(self, length: int, past: int) -> int:
        """How many rows of so many tokens one run takes; 1 if no profile takes them."""
        limits = [profile.max for profile in self.profiles]
        fitting = [m.batch for m in limits if m.length >= length and m.past >= past]
        return max(fitting, default=1)

    def run(self, inputs: Arrays, choice: Choice, wanted: Sequence[str]) -> Arrays:
        """Run the profile of a choice."""
        return self._runners.of(choice.profile).run(inputs, choice.extent, wanted)


class PlanStreamBackend:
    """A `StreamBackend` over the plans of the streaming graph and of the head."""

    def __init__(
        self,
        name: str,
        heads: Heads,
        neurons: int,
        cache: CacheSpec,
        stream: Profiles,
        head: Profiles,
    ) -> None:
        """Take what the graphs read, and what runs the streaming graph and the heads."""
        self.name, self.neurons, self.cache = name, neurons, cache
        self.head_spec = next(iter(heads.values()))
        self._past = frozenset(names(cache.past))
        self._kept = frozenset(names(cache.present))
        self._outputs = names(stream_graph(self.head_spec, neurons, cache).outputs)
        self._head_outputs = names(head_graph(heads, neurons).outputs)
        self._profiles, self._head = stream, head
        # One profile takes all of it: a stream alone can then be read whatever its length.
        longest = max(stream.profiles, key=lambda profile: profile.max.past).max
        self.max_tokens, self.max_chunk = longest.past, longest.length
        self.token_budget = longest.batch * longest.length

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
        """Run the streaming graph, as `StreamBackend.step`; more streams than it takes in parts."""
        inputs: Arrays = stream_inputs(
            self.cache, input_ids, past_lengths, past, feature_sum, feature_count
        )
        wanted = self._outputs if present else self._outputs[: -self.cache.buffers]
        parts = [self._step(part, wanted) for part in self._parts(inputs)]
        score, logits, sums, *new = (np.concatenate([p[name] for p in parts]) for name in wanted)
        return StreamOutputs(score, logits, sums, new)

    def head(self, pooled: FloatArray) -> Outputs:
        """Run the head alone, as `StreamBackend.head`; more rows than it takes in parts."""
        size = self._head.rows(1, 0)
        parts = []
        for start in range(0, len(pooled), size):
            rows = pooled[start : start + size]
            choice = choose_profile(self._head.profiles, [], len(rows), 1)
            outputs = self._head.run({POOLED: rows}, choice, self._head_outputs)
            parts.append([outputs[name][: len(rows)] for name in self._head_outputs])
        return Outputs.of([*map(np.concatenate, zip(*parts, strict=True))])

    def _parts(self, inputs: Arrays) -> list[Arrays]:
        batch, chunk = inputs[INPUT_IDS].shape
        size = self._profiles.rows(chunk, _longest(inputs))
        return [
            {name: values[start : start + size] for name, values in inputs.items()}
            for start in range(0, batch, size)
        ]

    def _step(self, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        batch, chunk = inputs[INPUT_IDS].shape
        extent = Extent(batch, chunk, _longest(inputs))
        choice = choose_stream_profile(self._profiles.profiles, extent)
        held = choice.extent.past  # of buffers that may be longer; what is beyond does not count
        inputs = {
            name: values[:, :, :held] if name in self._past else values
            for name, values in inputs.items()
        }
        outputs = self._profiles.run(inputs, choice, wanted)
        return {
            name: values[:batch, :, :chunk] if name in self._kept else values[:batch, :chunk]
            for name, values in outputs.items()
        }


def _longest(inputs: Arrays) -> int:
    """The tokens of the longest past, at least one: a plan takes no empty buffers."""
    return max(1, int(inputs[PAST_LENGTHS].max()))


def open_stream_plan(bundle: Bundle, flavor: Flavor) -> PlanStreamBackend:
    """Open the bundle's newest plans of its streaming graph and head that run here.

    Raises:
        BackendError: as `siren_runtime.backends.tensorrt.score.open_plan`.
    """
    library, capability = load_library(flavor), compute_capability()

    def opened(graph: str) -> Profiles:
        plan = find_plan(bundle, graph, library, capability)
        loaded = engine.Engine(plan, library, bundle.manifest.graphs[graph])
        return Profiles(plan.record.profiles, lambda profile: engine.Runner(loaded, profile))

    manifest = bundle.manifest
    return PlanStreamBackend(
        flavor,
        manifest.heads,
        manifest.pooled,
        manifest.stream_cache,
        opened("stream"),
        opened("head"),
    )
