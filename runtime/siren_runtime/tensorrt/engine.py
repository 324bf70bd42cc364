"""A plan on the GPU: the deserialised engine, and what runs one of its profiles in one thread.

Written against the documented API of TensorRT 10 and 11, TensorRT-RTX 1.7 and cuda-python 12 and
13; it has not been run on a GPU.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from siren_runtime.backends.base import Outputs, TokenArray
from siren_runtime.errors import BackendError

from .gpu import Graph, Memory, Mirror, Stream, current_device, use_device
from .library import Library, make_logger
from .plan import Plan, replace_file
from .profiles import Extent

_MAX_GRAPHS = 32  # CUDA graphs kept by a runner; each holds a context, which shares its memory
_INPUTS = ("input_ids", "attention_mask")


class Engine:
    """A plan that its library has loaded onto the current GPU. Threads may share it."""

    def __init__(
        self,
        plan: Plan,
        library: Library,
        widths: Mapping[str, tuple[int, ...]],
        *,
        cuda_graphs: bool = True,
    ) -> None:
        """Load the plan.

        Args:
            widths: output name -> its shape but for the batch.
            cuda_graphs: replay a shape's kernels as one CUDA graph from its second use on.

        Raises:
            BackendError: there is no GPU, or the plan is damaged, of another version or GPU, or
                does not fit in device memory.
        """
        self.device = current_device()
        self.plan, self.library, self.widths = plan, library, dict(widths)
        self.cuda_graphs = cuda_graphs
        self._logger = make_logger(library, "error", lambda line: None)
        self._runtime = library.trt.Runtime(self._logger)  # must outlive the engine
        self.engine = self._runtime.deserialize_cuda_engine(plan.read())
        if self.engine is None:
            raise BackendError(
                f"{plan.path}: {library.flavor} {library.version} cannot load the plan: "
                f"{self.errors() or 'no reason given'}; run siren build on this machine, with "
                "smaller profiles if device memory is short"
            )
        self.settings = library.runtime_config(
            self.engine, plan.runtime_cache, cuda_graphs=cuda_graphs
        )

    def errors(self) -> str:
        """What the library reported since it was last asked."""
        lines, self._logger.errors = self._logger.errors, []
        return " | ".join(lines)

    def save_runtime_cache(self) -> None:
        """Keep the kernels that TensorRT-RTX has compiled by now; a read-only bundle goes without.

        The cache makes the next start quicker and nothing else depends on it.
        """
        if self.settings is None:
            return
        data = memoryview(self.settings.get_runtime_cache().serialize())
        path = self.plan.runtime_cache
        if path.is_file() and path.stat().st_size == data.nbytes:
            return
        with contextlib.suppress(BackendError):
            replace_file(path, data)


class Runner:
    """Runs one profile of an engine in one thread, on a stream and buffers of its own."""

    def __init__(self, engine: Engine, profile: int) -> None:
        use_device(engine.device)
        limit = engine.plan.record.profiles[profile].max
        self._engine, self._profile = engine, profile
        self._stream = Stream()
        self._buffers = {name: Mirror(limit, np.int64) for name in _INPUTS} | {
            name: Mirror((limit.batch, *width), np.float32) for name, width in engine.widths.items()
        }
        self._memory: Memory | None = None  # what a context of TensorRT works in
        if engine.settings is None:
            self._memory = Memory(engine.engine.device_memory_size_v2)
        self._context = self._new_context()
        self._seen: set[Extent] = set()
        self._graphs: OrderedDict[Extent, tuple[Any, Graph]] = OrderedDict()

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Run a batch whose shape lies in the profile.

        Raises:
            BackendError: the library or CUDA failed.
        """
        extent = Extent(*input_ids.shape)
        for name, values in zip(_INPUTS, (input_ids, attention_mask), strict=True):
            self._buffers[name].host(extent)[...] = values
            self._buffers[name].upload(extent, self._stream)
        # What the engine does not write stays NaN, which the guard refuses: it never fails open.
        self._buffers["score"].host((extent.batch,)).fill(np.nan)
        self._buffers["score"].upload((extent.batch,), self._stream)
        self._execute(extent)
        shapes = {name: (extent.batch, *width) for name, width in self._engine.widths.items()}
        for name, shape in shapes.items():
            self._buffers[name].download(shape, self._stream)
        self._stream.wait()
        if extent not in self._seen:
            self._seen.add(extent)
            self._engine.save_runtime_cache()
        return Outputs(
            **{name: self._buffers[name].host(shape).copy() for name, shape in shapes.items()}
        )

    def _execute(self, extent: Extent) -> None:
        """Put the engine's work on the stream, from the second time on as a CUDA graph.

        TensorRT-RTX keeps its own graphs. With TensorRT a graph is bound to the shapes that its
        context had, so each has a context; all share the runner's memory, one runs at a time.
        """
        graphs = self._graphs
        if extent in graphs:
            graphs.move_to_end(extent)
            graphs[extent][1].launch()
            return
        if self._memory is None or not self._engine.cuda_graphs or extent not in self._seen:
            self._enqueue(self._context, extent)
            return
        context = self._new_context()
        self._enqueue(context, extent)  # before a capture, a context must have run once
        try:
            graphs[extent] = context, Graph(self._stream, lambda: self._enqueue(context, extent))
        except BackendError:  # a layer that cannot be captured; its work is on the stream already
            self._engine.cuda_graphs = False
        if len(graphs) > _MAX_GRAPHS:
            self._stream.wait()
            graphs.popitem(last=False)

    def _new_context(self) -> Any:
        engine, library = self._engine.engine, self._engine.library
        if self._memory is None:
            context = engine.create_execution_context(self._engine.settings)
        else:
            strategy = library.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        if context is None:
            raise self._failure("has no memory for an execution context")
        if self._memory is not None:
            context.set_device_memory(self._memory.address, self._memory.size)
        if not context.set_optimization_profile_async(self._profile, self._stream.handle):
            raise self._failure(f"cannot set profile {self._profile}")
        self._stream.wait()
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, buffer.device.address):
                raise self._failure(f"has no tensor {name!r}")
        return context

    def _enqueue(self, context: Any, extent: Extent) -> None:
        for name in _INPUTS:
            if not context.set_input_shape(name, tuple(extent)):
                raise self._failure(f"does not take {name} of shape {extent}")
        if not context.execute_async_v3(self._stream.handle):
            raise self._failure(f"failed on a batch of {extent}")

    def _failure(self, what: str) -> BackendError:
        library = self._engine.library
        reason = self._engine.errors()
        return BackendError(
            f"{self._engine.plan.path}: {library.flavor} {library.version} {what}"
            f"{f': {reason}' if reason else ''}"
        )
