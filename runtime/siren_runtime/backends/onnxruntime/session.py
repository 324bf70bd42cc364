"""Open one of a bundle's graphs in ONNX Runtime, and see that it is the manifest's."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from siren_runtime.bundle.arguments import whole_number
from siren_runtime.bundle.graphs import TensorSpec, signature
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError, BundleError, InputError

from .failures import engine_failures
from .providers import Provider, import_onnxruntime, provider_name

_NAMES = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "onnxruntime-tensorrt",
    "NvTensorRTRTXExecutionProvider": "onnxruntime-tensorrt-rtx",
}
# Measured with MiniLM over mixed texts: one CPU thread takes 1.6 times as long at 4,096 tokens as
# at 256 to 512, where activations stay in its cache. A GPU wants more work at once; not measured.
_CPU_TOKEN_BUDGET, _GPU_TOKEN_BUDGET = 512, 8192
_DTYPES = {"tensor(int64)": "int64", "tensor(float)": "float32", "tensor(float16)": "float16"}
# For bundles from before their weights were made saturation-free. Without it, their 8-bit products
# saturate on CPUs that have AVX2 or AVX-512 but no VNNI, and scores are wrong. With it, they are
# exact everywhere, but slow; VNNI machines ignore it. Graphs for TensorRT have no such products,
# and ONNX Runtime 1.31 fails on their DequantizeLinear nodes with it.
_EXACT_PRODUCTS = ("session.x64quantprecision", "1")
_MAX_THREADS = 1024
_log = logging.getLogger(__name__)
_FATAL = 4  # ONNX Runtime's log level; errors are raised, so logging them too would say it twice


def open_session(
    bundle: Bundle,
    graph_name: str,
    providers: Sequence[Provider],
    *,
    strict: bool,
    threads: int | None = None,
    session_options: Any = None,
) -> tuple[Any, str]:
    """Open a graph of the bundle and check it against the manifest.

    Returns:
        The `onnxruntime.InferenceSession` and what it runs on: "cpu", "cuda" or "tensorrt".

    Raises:
        BackendError, BundleError, InputError: as `open_backend`.
    """
    graph = bundle.manifest.graphs[graph_name]
    path = bundle.file(graph.file)
    if session_options is None:
        session_options = _session_options(threads)
    elif threads is not None:
        raise InputError("pass either threads or session_options with intra_op_num_threads")
    if bundle.manifest.target == "onnxruntime" and not bundle.manifest.saturation_free:
        session_options.add_session_config_entry(*_EXACT_PRODUCTS)
    hint = ""
    if bundle.manifest.precision == "bf16":
        hint = "; a bf16 bundle runs on a TensorRT plan: compile one with siren build"
    with engine_failures(
        lambda error: f"{path}: ONNX Runtime cannot load the graph: {error}{hint}"
    ):
        session = import_onnxruntime().InferenceSession(
            str(path), session_options, providers=list(providers), enable_fallback=0
        )
    first = session.get_providers()[0]
    wanted = provider_name(providers[0])
    if strict and first != wanted:
        raise BackendError(
            f"{wanted} is installed but did not start, only {first} did; check "
            "the GPU, its driver and its libraries, or load with backend='cpu'"
        )
    _check_signature(str(path), "input", session.get_inputs(), graph.inputs)
    _check_signature(str(path), "output", session.get_outputs(), graph.outputs)
    return session, _NAMES.get(first, first)


def token_budget(backend: str) -> int:
    """Tokens, padding included, that run best in one batch on what `backend` names."""
    return _CPU_TOKEN_BUDGET if backend == "cpu" else _GPU_TOKEN_BUDGET


def usable_threads(threads: int) -> int:
    """Return how many of `threads` there are cores for in this process.

    More would take turns on them: 1024 threads on two cores need a minute for a text. A log says
    so, since a setting that was made for a larger machine is no reason not to score.

    Raises:
        InputError: `threads` is not a whole number from 1 to 1024.
    """
    threads = whole_number("threads", threads, 1, _MAX_THREADS)
    cores = _cores()
    if threads > cores:
        _log.warning("threads=%d, but this process has %d cores; it takes these", threads, cores)
    return min(threads, cores)


def _cores() -> int:
    """The cores that this process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _session_options(threads: int | None) -> Any:
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = _FATAL
    if threads is not None:
        options.intra_op_num_threads = usable_threads(threads)
    return options


def _check_signature(path: str, kind: str, found: Sequence[Any], specs: list[TensorSpec]) -> None:
    actual = [
        TensorSpec(value.name, _DTYPES.get(value.type, value.type), value.shape) for value in found
    ]
    if signature(actual) != signature(specs):
        raise BundleError(
            f"{path}: the graph's {kind}s are {signature(actual)}, guard.json says "
            f"{signature(specs)}; the graph and the manifest belong to different bundles"
        )
