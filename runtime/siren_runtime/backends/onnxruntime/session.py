"""Open a bundle's graphs in ONNX Runtime, and see that they are the manifest's.

ONNX Runtime maps the weights of a graph that it opens by its path, and a file that is changed then
changes the scores, or ends the process when it is truncated. So it gets bytes, and copies of them
what it needs. Their hash is computed beside it, on another thread.
"""

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from siren_runtime.backends.memory import release_freed_memory
from siren_runtime.backends.outputs import FloatArray, Outputs
from siren_runtime.backends.process import keep_in_children
from siren_runtime.bundle.arguments import whole_number
from siren_runtime.bundle.graphs import POOLED, GraphSpec, TensorSpec, signature
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError, BundleError, InputError

from .failures import EngineFailures
from .providers import Provider, import_onnxruntime, provider_name, with_options

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
# A GPU computes the 4-bit products of graphs for TensorRT in floats. ONNX Runtime's CPU makes
# products of its own of them, and at its default level rounds what they read to 8 bits.
_FLOAT_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")
# Threads do not wait for the next run by spinning.
_NO_WAITING = ("session.force_spinning_stop", "1")
# Where ONNX Runtime would look for weights that it was not given. A file is no folder: nowhere.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_MAX_THREADS = 1024
_log = logging.getLogger(__name__)
# The smallest ONNX model: float x -> Identity -> y, IR version 8, opset 13.
_IDENTITY = (
    b'\x08\x08:/\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\x0b\n\x01x\x12\x06\n\x04\x08\x01\x12\x00b\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00B\x04\n\x00\x10\r"
)
_FATAL = 4  # ONNX Runtime's log level; errors are raised, so logging them too would say it twice


@dataclass(frozen=True)
class SessionRequest:
    """What sessions are opened with.

    Attributes:
        providers: ONNX Runtime's, the first that can take a node first.
        strict: refuse a first provider that ONNX Runtime lists but cannot start.
        threads: of one run; None leaves it to ONNX Runtime.
        session_options: a caller's `onnxruntime.SessionOptions`, in place of `threads`.
    """

    providers: Sequence[Provider]
    strict: bool = True
    threads: int | None = None
    session_options: Any = None


CPU: Final = SessionRequest(("CPUExecutionProvider",))


def open_session(bundle: Bundle, graph_name: str, asked: SessionRequest) -> tuple[Any, str]:
    """Open one graph of the bundle, as `open_sessions`."""
    (session,), name = open_sessions(bundle, [graph_name], asked)
    return session, name


def open_sessions(
    bundle: Bundle,
    graph_names: Sequence[str],
    asked: SessionRequest,
    *,
    in_turn: bool = False,
    on_one_thread: Collection[str] = (),
) -> tuple[list[Any], str]:
    """Open graphs of the bundle, whose weights are read once, and check them against the manifest.

    Args:
        in_turn: the graphs run one right after the other, so the threads of one that has run must
            leave the processors to the next one's at once.
        on_one_thread: small graphs that run between runs of a large one. Further threads of theirs
            would wait for those of the large one, which spin in the expectation of its next run.

    Returns:
        An `onnxruntime.InferenceSession` for each, and what they run on: "cpu", "cuda" or
        "tensorrt".

    Raises:
        BackendError, BundleError, InputError: as `open_backend`.
    """
    graphs = [bundle.manifest.graphs[name] for name in graph_names]
    options = []
    for name in graph_names:
        options.append(_session_options(asked.threads, asked.session_options))
        if in_turn:
            options[-1].add_session_config_entry(*_NO_WAITING)
        if name in on_one_thread:
            options[-1].intra_op_num_threads = 1
    of_graphs = [with_options(bundle, name, asked.providers) for name in graph_names]
    sessions = _created(bundle, graphs, of_graphs, options)
    release_freed_memory()
    names = [
        _checked(bundle, graph, session, asked.providers[0], strict=asked.strict)
        for graph, session in zip(graphs, sessions, strict=True)
    ]
    return sessions, names[0]


def _created(
    bundle: Bundle,
    graphs: Sequence[GraphSpec],
    providers: Sequence[Sequence[Provider]],
    options: Sequence[Any],
) -> list[Any]:
    """A session for each graph, with providers and options of its own. The weights are in memory
    twice until it is made.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import, so not with the module

    models = [bundle.read(graph.file) for graph in graphs]
    locations = [
        bundle.weights_of(graph.file, model) for graph, model in zip(graphs, models, strict=True)
    ]
    files = sorted({file for of_graph in locations for file in of_graph.values()})
    contents = {file: bundle.read_unchecked(file) for file in files}
    sessions = []
    with ThreadPoolExecutor(1, "siren-sha256") as pool:
        checks = [pool.submit(bundle.check, name, data.data) for name, data in contents.items()]
        try:
            for graph, model, of_graph, own, asked in zip(
                graphs, models, locations, options, providers, strict=True
            ):
                weights = {location: contents[file] for location, file in of_graph.items()}
                sessions.append(_opened(bundle, graph, model, weights, own, asked))
        finally:  # that a file is damaged says more than what came of it
            for check in checks:
                check.result()
    return sessions


def _opened(
    bundle: Bundle,
    graph: GraphSpec,
    model: bytes,
    weights: Mapping[str, npt.NDArray[np.uint8]],
    options: Any,
    providers: Sequence[Provider],
) -> Any:
    """Open a graph's bytes with `weights`, the content of each of its locations."""
    path = bundle.file(graph.file)
    if bundle.manifest.target != "onnxruntime":
        options.add_session_config_entry(*_FLOAT_PRODUCTS)
    elif not bundle.manifest.saturation_free:
        options.add_session_config_entry(*_EXACT_PRODUCTS)
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(path))
    hint = ""
    if bundle.manifest.precision == "bf16":
        hint = "; a bf16 bundle runs on a TensorRT plan: compile one with siren build"
    with EngineFailures(lambda error: f"{path}: ONNX Runtime cannot load the graph: {error}{hint}"):
        options.add_external_initializers_from_files_in_memory(
            [*weights], [*weights.values()], [len(content) for content in weights.values()]
        )
        session = import_onnxruntime().InferenceSession(
            model, options, providers=list(providers), enable_fallback=0
        )
    keep_in_children(session)
    return session


def _checked(
    bundle: Bundle, graph: GraphSpec, session: Any, provider: Provider, *, strict: bool
) -> str:
    """What a session runs on, if that is what was asked for and the graph is the manifest's."""
    path = bundle.file(graph.file)
    first: str = session.get_providers()[0]
    wanted = provider_name(provider)
    if strict and first != wanted:
        raise BackendError(
            f"{wanted} is installed but did not start, only {first} did; check "
            "the GPU, its driver and its libraries, or load with backend='cpu'"
        )
    _check_signature(str(path), "input", session.get_inputs(), graph.inputs)
    _check_signature(str(path), "output", session.get_outputs(), graph.outputs)
    return _NAMES.get(first, first)


def run_head(session: Any, outputs: Sequence[str], pooled: FloatArray) -> Outputs:
    """Run a session over head.onnx, as `StreamBackend.head`; `outputs` are all of the graph's."""
    with EngineFailures(
        lambda error: f"ONNX Runtime failed on the head of {len(pooled)} rows: {error}"
    ):
        values = session.run(outputs, {POOLED: pooled})
    return Outputs.of(values)


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
    cores = usable_cores()
    if threads > cores:
        _log.warning("threads=%d, but this process has %d cores; it takes these", threads, cores)
    return min(threads, cores)


def usable_cores() -> int:
    """The cores that this process may run on, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _session_options(threads: int | None, callers: Any) -> Any:
    """Options for one session, which can be given weights: a copy of the caller's, or our own."""
    if callers is not None:
        if threads is not None:
            raise InputError("pass either threads or session_options with intra_op_num_threads")
        return _copy(callers)
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = _FATAL
    if threads is not None:
        options.intra_op_num_threads = usable_threads(threads)
    return options


def _copy(options: Any) -> Any:
    """ONNX Runtime copies options into a session, here one of a graph that does nothing."""
    try:
        session = import_onnxruntime().InferenceSession(
            _IDENTITY, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot use the session_options: {error}") from error
    return session.get_session_options()


def tensor_specs(values: Iterable[Any]) -> list[TensorSpec]:
    """What a session says of its inputs or outputs, each an `onnxruntime.NodeArg`."""
    return [
        TensorSpec(value.name, _DTYPES.get(value.type, value.type), value.shape) for value in values
    ]


def _check_signature(path: str, kind: str, found: Sequence[Any], specs: list[TensorSpec]) -> None:
    actual = signature(tensor_specs(found))
    if actual != signature(specs):
        raise BundleError(
            f"{path}: the graph's {kind}s are {actual}, guard.json says "
            f"{signature(specs)}; the graph and the manifest belong to different bundles"
        )
