"""Run a bundle's streaming graph and its head from plans that TensorRT or TensorRT-RTX compiled.

The past goes to the GPU from pinned host memory at each step: the caches lie in host memory, where
streams come, go and slide. Not run on a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from siren_runtime.backends.base import (
    CacheArray,
    CacheLayout,
    FloatArray,
    Outputs,
    StreamOutputs,
    TokenArray,
)
from siren_runtime.backends.padding import OfThread
from siren_runtime.backends.shapes import Choice, Extent, Profile, choose, choose_stream
from siren_runtime.bundle.graphs import GraphSpec
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

    def __init__(self, name: str, stream: GraphSpec, profiles: Profiles, head: Profiles) -> None:
        """Take what the streaming graph is, and what runs it and the head."""
        self.name = name
        past = [spec for spec in stream.inputs if spec.name.startswith("past.")]
        _, heads, _, dim = past[0].shape
        self.layout = CacheLayout(len(past), int(heads), int(dim), np.dtype(past[0].dtype))
        self.features = next(int(s.shape[1]) for s in stream.inputs if s.name == "feature_sum")
        self._past = [spec.name for spec in past]
        self._present = [name.replace("past.", "present.", 1) for name in self._past]
        self._profiles, self._head = profiles, head
        # One profile takes all of it: a stream alone can then be read whatever its length.
        longest = max(profiles.profiles, key=lambda profile: profile.max.past).max
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
        inputs: Arrays = {
            "input_ids": input_ids,
            "past_lengths": past_lengths,
            "feature_sum": feature_sum,
            "feature_count": feature_count,
            **dict(zip(self._past, past, strict=True)),
        }
        names = ["score", "logits", "feature_sums", *(self._present if present else ())]
        parts = [self._step(part, names) for part in self._parts(inputs)]
        score, logits, sums, *new = (np.concatenate([p[name] for p in parts]) for name in names)
        return StreamOutputs(score, logits, sums, new)

    def head(self, pooled: FloatArray) -> Outputs:
        """Run the head alone, as `StreamBackend.head`; more rows than it takes in parts."""
        names = ("score", "logits", "features")
        size = self._head.rows(1, 0)
        parts = []
        for start in range(0, len(pooled), size):
            rows = pooled[start : start + size]
            choice = choose(self._head.profiles, [], len(rows), 1)
            outputs = self._head.run({"pooled": rows}, choice, names)
            parts.append([outputs[name][: len(rows)] for name in names])
        return Outputs(*map(np.concatenate, zip(*parts, strict=True)))

    def _parts(self, inputs: Arrays) -> list[Arrays]:
        batch, chunk = inputs["input_ids"].shape
        size = self._profiles.rows(chunk, _longest(inputs))
        return [
            {name: values[start : start + size] for name, values in inputs.items()}
            for start in range(0, batch, size)
        ]

    def _step(self, inputs: Arrays, names: Sequence[str]) -> Arrays:
        batch, chunk = inputs["input_ids"].shape
        extent = Extent(batch, chunk, _longest(inputs))
        choice = choose_stream(self._profiles.profiles, extent)
        held = choice.extent.past  # of buffers that may be longer; what is beyond does not count
        inputs = {
            name: values[:, :, :held] if name in self._past else values
            for name, values in inputs.items()
        }
        outputs = self._profiles.run(inputs, choice, names)
        return {
            name: values[:batch, :, :chunk] if name in self._present else values[:batch, :chunk]
            for name, values in outputs.items()
        }


def _longest(inputs: Arrays) -> int:
    """The tokens of the longest past, at least one: a plan takes no empty buffers."""
    return max(1, int(inputs["past_lengths"].max()))


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

    graph = bundle.manifest.graphs["stream"]
    return PlanStreamBackend(flavor, graph, opened("stream"), opened("head"))
