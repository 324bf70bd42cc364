"""Run a bundle's score graph in ONNX Runtime on an NVIDIA GPU: bound buffers and CUDA graphs.

Texts are padded to few shapes. For each, inputs and outputs have buffers on the GPU, and ONNX
Runtime replays its kernels as one CUDA graph from the third run on. The binding is tested on the
CPU; nothing here has been run on a GPU.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siren_runtime.backends.base import Backend
from siren_runtime.backends.outputs import Outputs, TokenArray
from siren_runtime.backends.padding import PaddedBackend
from siren_runtime.backends.shapes import Extent, Profile, default_profiles
from siren_runtime.bundle.graphs import (
    ATTENTION_MASK,
    INPUT_IDS,
    TensorSpec,
    names,
    score_graph,
    score_names,
)
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError

from .failures import EngineFailures
from .providers import CUDA_OPTIONS
from .session import SessionRequest, open_session

_CUDA = "CUDAExecutionProvider"
_MAX_GRAPHS = 64  # shapes beyond them are launched kernel by kernel
_NO_GRAPH = "-1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Bound:
    """The buffers of one shape, and how to run on them."""

    binding: Any
    options: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


class BoundSession:
    """A session whose inputs and outputs stay on its device. Threads take turns."""

    def __init__(self, session: Any, outputs: Sequence[TensorSpec], device: str) -> None:
        """Take what the graph gives, and "cuda" or "cpu"."""
        self._session, self._outputs, self._device = session, outputs, device
        self._bound: dict[Extent, _Bound] = {}
        self._lock = threading.Lock()  # CUDA graphs of one session share its memory

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Run a batch.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        extent = Extent(*input_ids.shape)
        what = f"a batch of {extent.batch} texts by {extent.length} tokens on {self._device}"
        with (
            self._lock,
            EngineFailures(lambda error: f"ONNX Runtime failed on {what}: {error}"),
        ):
            bound = self._bound.get(extent) or self._bind(extent)
            bound.inputs[INPUT_IDS].update_inplace(input_ids)
            bound.inputs[ATTENTION_MASK].update_inplace(attention_mask)
            # What a replay does not write stays NaN, which the guard refuses.
            for name in score_names(self._outputs):
                score = bound.outputs[name]
                score.update_inplace(np.full(score.shape(), np.nan, np.float32))
            self._session.run_with_iobinding(bound.binding, bound.options)
            return Outputs.of([bound.outputs[n].numpy().copy() for n in names(self._outputs)])

    def _bind(self, extent: Extent) -> _Bound:
        import onnxruntime

        def buffer(shape: tuple[int, ...], dtype: type) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), self._device, 0)

        inputs = {name: buffer(extent[:2], np.int64) for name in (INPUT_IDS, ATTENTION_MASK)}
        outputs = {
            spec.name: buffer(extent.shape(spec.shape), np.float32) for spec in self._outputs
        }
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        graph = len(self._bound) + 1  # 0 is ONNX Runtime's own
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(
            "gpu_graph_id", str(graph) if graph <= _MAX_GRAPHS else _NO_GRAPH
        )
        return self._bound.setdefault(extent, _Bound(binding, options, inputs, outputs))


def open_cuda(
    bundle: Bundle, asked: SessionRequest, buckets: Sequence[int] | None = None
) -> Backend | None:
    """Open score.onnx on the GPU, with CUDA graphs where ONNX Runtime can capture the graph.

    Args:
        asked: its providers are CUDA's and the CPU's.

    Returns:
        None where the CUDA provider does not start, and `asked` is not strict.

    Raises:
        BackendError, BundleError, InputError: as `open_backend`.
    """
    captured = (_CUDA, {**CUDA_OPTIONS, "enable_cuda_graph": "1"}), *asked.providers[1:]
    try:
        session, name = open_session(bundle, "score", replace(asked, providers=captured))
    except BackendError as error:
        _log.info("%s: without CUDA graphs: %s", bundle.path, error)
        session, name = open_session(bundle, "score", asked)
    if name != "cuda":
        return None
    outputs = score_graph(bundle.manifest.heads).outputs
    return bound_backend(session, outputs, name, bundle.manifest.text.max_length, buckets)


def bound_backend(
    session: Any,
    outputs: Sequence[TensorSpec],
    device: str,
    max_length: int,
    buckets: Sequence[int] | None = None,
) -> PaddedBackend:
    """Run a session on bound buffers, its batches padded as a plan's are."""
    bound = BoundSession(session, outputs, device)
    profiles: list[Profile] = default_profiles(max_length)[-1:]
    return PaddedBackend(device, profiles, lambda profile: bound, buckets)
