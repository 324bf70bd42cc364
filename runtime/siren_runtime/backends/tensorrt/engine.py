"""A plan on the GPU: the deserialised engine, and what runs one of its profiles in one thread.

Written against the documented API of TensorRT 10 and 11, TensorRT-RTX 1.7 and cuda-python 12 and
13; it has not been run on a GPU.
"""

import contextlib
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from siren_runtime.backends.outputs import Outputs, TokenArray
from siren_runtime.backends.shapes import Extent
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.graphs import ATTENTION_MASK, INPUT_IDS, GraphSpec, names, score_names
from siren_runtime.errors import BackendError

from .gpu import CudaGraph, CudaStream, Memory, Mirror, current_device, use_device
from .library import Library, make_logger, open_interface
from .plan import Plan

# CUDA graphs of a runner, one a shape; each holds a context, which shares the runner's memory.
# Shapes beyond them are launched kernel by kernel: to evict and capture anew would cost more.
_MAX_GRAPHS = 64
_DTYPES = {"int64": "INT64", "float32": "FLOAT", "float16": "HALF"}  # numpy's name -> TensorRT's


class Engine:
    """A plan that its library has loaded onto the current GPU. Threads may share it."""

    def __init__(
        self,
        plan: Plan,
        library: Library,
        graph: GraphSpec,
    ) -> None:
        """Load the plan.

        Args:
            graph: what the plan was compiled from.

        Raises:
            BackendError: there is no GPU, or the plan is damaged, of another version or GPU, or
                does not fit in device memory.
        """
        self.device = current_device()
        use_device(self.device)  # makes its CUDA context, which the kernel cache is checked with
        self.plan, self.library = plan, library
        self.inputs, self.outputs = list(graph.inputs), list(graph.outputs)
        self.cuda_graphs = True  # replays a shape's kernels as one from its second use on
        self._logger = make_logger(library, "error", lambda line: None)
        self._runtime = open_interface(library, "Runtime", self._logger)  # must outlive the engine
        self.engine = self._runtime.deserialize_cuda_engine(plan.read())
        if self.engine is None:
            raise BackendError(
                f"{plan.path}: {library.flavor} {library.version} cannot load the plan: "
                f"{self.errors() or 'no reason given'}; run siren build on this machine, with "
                "smaller profiles if device memory is short"
            )
        self._check_tensors()
        self.settings = library.runtime_config(self.engine, plan.runtime_cache)
        self._saving = threading.Lock()
        if self.settings is not None:  # when this object goes, or the interpreter
            alive = self.settings, self.engine, self._runtime  # let go of in this order
            weakref.finalize(self, _save_cache, alive, plan.runtime_cache)

    def errors(self) -> str:
        """What the library reported since it was last asked."""
        lines, self._logger.errors = self._logger.errors, []
        return " | ".join(lines)

    def save_runtime_cache(self) -> None:
        """Keep the kernels that TensorRT-RTX has compiled by now; a read-only bundle goes without.

        The cache makes the next start quicker and nothing else depends on it.
        """
        if self.settings is not None:
            with self._saving:
                _save_cache((self.settings,), self.plan.runtime_cache)

    def _check_tensors(self) -> None:
        """Buffers are sized by the manifest, and an engine of other tensors would leave them."""
        trt, engine = self.library.trt, self.engine
        specs = [*self.inputs, *self.outputs]
        expected = {spec.name: getattr(trt.DataType, _DTYPES[spec.dtype]) for spec in specs}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: engine.get_tensor_dtype(name) for name in names}
        if found != expected:
            raise BackendError(
                f"{self.plan.path}: the plan has tensors {found}, expected {expected}; run siren "
                "build again"
            )
        for spec in specs:
            shape = tuple(engine.get_tensor_shape(spec.name))  # -1 where it is free
            fixed = zip(shape, spec.shape, strict=False)
            fits = all(isinstance(size, str) or have in (-1, size) for have, size in fixed)
            if len(shape) != len(spec.shape) or not fits:
                raise BackendError(
                    f"{self.plan.path}: the plan's {spec.name} has shape {shape}, expected "
                    f"{tuple(spec.shape)}; run siren build again"
                )


def _save_cache(alive: tuple[Any, ...], path: Path) -> None:
    """Save the kernels of runtime settings, the first of `alive`, while the others are too."""
    data = memoryview(alive[0].get_runtime_cache().serialize())
    if path.is_file() and path.stat().st_size == data.nbytes:
        return
    with contextlib.suppress(BackendError):
        write_whole(path, data, BackendError)


class ScoreRunner:
    """Runs one profile of the score graph, as `PaddedBackend` asks for it."""

    def __init__(self, engine: Engine, profile: int) -> None:
        self._runner = Runner(engine, profile)
        self._outputs = names(engine.outputs)

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Run a batch whose shape lies in the profile.

        Raises:
            BackendError: the library or CUDA failed.
        """
        inputs = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        found = self._runner.run(inputs, Extent(*input_ids.shape), self._outputs)
        return Outputs.of([found[name] for name in self._outputs])


def fill(target: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
    """Put `values` in the first places of `target`, and zeros in the others."""
    if target.shape != values.shape:
        target.fill(0)
    target[tuple(map(slice, values.shape))] = values


class Runner:
    """Runs one profile of an engine in one thread, on a CUDA stream and buffers of its own."""

    def __init__(self, engine: Engine, profile: int) -> None:
        use_device(engine.device)
        limit = engine.plan.record.profiles[profile].max
        self._engine, self._profile = engine, profile
        self._scores = score_names(engine.outputs)
        self._stream = CudaStream()
        self._buffers = {
            spec.name: Mirror(limit.shape(spec.shape), spec.dtype)
            for spec in (*engine.inputs, *engine.outputs)
        }
        self._memory: Memory | None = None  # what a context of TensorRT works in
        if engine.settings is None:
            self._memory = Memory(engine.engine.get_device_memory_size_for_profile_v2(profile))
        self._context = self._new_context()
        self._seen: set[Extent] = set()
        self._graphs: dict[Extent, tuple[Any, CudaGraph]] = {}

    def run(
        self, inputs: Mapping[str, npt.NDArray[Any]], extent: Extent, wanted: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run a batch.

        Args:
            inputs: every input, smaller than `extent` where zeros are to fill it.
            extent: lies in the profile.
            wanted: the outputs to bring back, whole.

        Raises:
            BackendError: the library or CUDA failed.
        """
        use_device(self._engine.device)  # the caller may have changed it
        for spec in self._engine.inputs:
            buffer, shape = self._buffers[spec.name], extent.shape(spec.shape)
            fill(buffer.host(shape), inputs[spec.name])
            buffer.upload(shape, self._stream)
        shapes = {
            spec.name: extent.shape(spec.shape)
            for spec in self._engine.outputs
            if spec.name in wanted
        }
        # What the engine does not write stays NaN, which the guard refuses: it never fails open.
        for name in self._scores:
            self._buffers[name].host(shapes[name]).fill(np.nan)
            self._buffers[name].upload(shapes[name], self._stream)
        self._execute(extent)
        for name, shape in shapes.items():
            self._buffers[name].download(shape, self._stream)
        self._stream.wait()
        if extent not in self._seen:
            self._seen.add(extent)
            self._engine.save_runtime_cache()
        return {name: self._buffers[name].host(shape).copy() for name, shape in shapes.items()}

    def _execute(self, extent: Extent) -> None:
        """Put the engine's work on the stream, from the second time on as a CUDA graph.

        TensorRT-RTX keeps its own graphs. With TensorRT a graph is bound to the shapes that its
        context had, so each has a context; all share the runner's memory, one runs at a time.
        """
        if extent in self._graphs:
            self._graphs[extent][1].launch()
            return
        wanted = self._memory is not None and self._engine.cuda_graphs and extent in self._seen
        if not wanted or len(self._graphs) >= _MAX_GRAPHS:
            self._enqueue(self._context, extent)
            return
        context = self._new_context()
        self._enqueue(context, extent)  # before a capture, a context must have run once
        try:
            graph = CudaGraph(self._stream, lambda: self._launch(context, extent))
        except BackendError:  # a layer that cannot be captured; its work is on the stream already
            self._engine.cuda_graphs = False
            self._engine.errors()
            self._stream.wait()  # the context must outlive its work
        else:
            self._graphs[extent] = context, graph

    def _new_context(self) -> Any:
        engine, library = self._engine.engine, self._engine.library
        if self._memory is None:
            context = engine.create_execution_context(self._engine.settings)
        else:
            strategy = library.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        if context is None:
            raise self._failure(
                "has no memory for an execution context; use a plan with smaller profiles or free "
                "GPU memory"
            )
        if not context.set_optimization_profile_async(self._profile, self._stream.handle):
            raise self._failure(f"cannot set profile {self._profile}")
        self._stream.wait()
        if self._memory is not None:
            context.set_device_memory(self._memory.address, self._memory.size)
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, buffer.device.address):
                raise self._failure(f"has no tensor {name!r}")
        return context

    def _enqueue(self, context: Any, extent: Extent) -> None:
        for spec in self._engine.inputs:
            shape = extent.shape(spec.shape)
            if not context.set_input_shape(spec.name, shape):
                raise self._failure(f"does not take {spec.name} of shape {shape}")
        self._launch(context, extent)

    def _launch(self, context: Any, extent: Extent) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise self._failure(f"failed on a batch of {extent}")

    def _failure(self, what: str) -> BackendError:
        library = self._engine.library
        reason = self._engine.errors()
        return BackendError(
            f"{self._engine.plan.path}: {library.flavor} {library.version} {what}"
            f"{f': {reason}' if reason else ''}"
        )
