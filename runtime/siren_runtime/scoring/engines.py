"""Inference runtimes that a bundle's graph runs on, chosen by name."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from siren_runtime.backends.base import Backend, Outputs, StreamBackend
from siren_runtime.backends.onnxruntime.session import (
    OnnxRuntimeBackend,
    Provider,
    available_providers,
    check_available,
    with_caches,
)
from siren_runtime.backends.onnxruntime.stream import OnnxRuntimeStreamBackend
from siren_runtime.backends.tensorrt.library import Flavor
from siren_runtime.backends.tensorrt.plan import recorded_flavors
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError, InputError

BackendName = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]

# Each provider takes the nodes it can and leaves the rest to the next.
_PROVIDERS: Mapping[BackendName, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
_FLAVORS: tuple[Flavor, ...] = get_args(Flavor)
_log = logging.getLogger(__name__)
_T = TypeVar("_T")

__all__ = [
    "Backend",
    "BackendName",
    "Outputs",
    "Provider",
    "StreamBackend",
    "is_compiled",
    "open_backend",
    "open_plans",
    "open_stream_backend",
]


def open_backend(
    bundle: Bundle,
    backend: BackendName = "auto",
    *,
    threads: int | None = None,
    providers: Sequence[Provider] | None = None,
    session_options: Any = None,
    buckets: Sequence[int] | None = None,
) -> Backend:
    """Open the score graph of `bundle`: a plan in TensorRT, else score.onnx in ONNX Runtime.

    "auto" takes a plan that runs here, else CUDA where it is available and starts, else the CPU;
    it logs why a plan was passed over. Any other name, and `providers`, which stands in for a
    name, gets what it asks for or an error. `threads` and `session_options` are ONNX Runtime's,
    `buckets` a GPU's. CUDA by name has bound buffers and CUDA graphs; named in `providers` it has
    neither.

    Raises:
        BackendError: the library or the provider is missing, or cannot run the graph.
        BundleError: the graph's inputs or outputs are not those of guard.json.
        InputError: the arguments contradict each other or are out of range.
    """
    if backend in _FLAVORS:
        if session_options is not None:
            raise InputError(f"session_options are ONNX Runtime's; the backend is {backend!r}")
        return _open_plan(bundle, backend, buckets)
    if backend == "auto" and providers is None and session_options is None:
        plan = _first_that_runs(bundle, lambda flavor: _open_plan(bundle, flavor, buckets))
        if plan is not None:
            return plan
    chosen, strict = _choose(bundle, backend, providers)
    if chosen is _PROVIDERS["cuda"]:
        from siren_runtime.backends.onnxruntime.cuda import open_cuda

        return open_cuda(
            bundle, strict=strict, threads=threads, session_options=session_options, buckets=buckets
        )
    return OnnxRuntimeBackend(
        bundle, chosen, strict=strict, threads=threads, session_options=session_options
    )


def open_stream_backend(
    bundle: Bundle,
    backend: BackendName = "auto",
    *,
    threads: int | None = None,
    providers: Sequence[Provider] | None = None,
    session_options: Any = None,
) -> StreamBackend:
    """Open the streaming graph of `bundle` and its head; as `open_backend`.

    "auto" takes ONNX Runtime; `open_plans` comes before it.
    """
    if backend in _FLAVORS:
        return _open_stream_plan(bundle, backend)
    chosen, strict = _choose(bundle, backend, providers)
    return OnnxRuntimeStreamBackend(
        bundle, chosen, strict=strict, threads=threads, session_options=session_options
    )


def open_plans(
    bundle: Bundle, buckets: Sequence[int] | None = None
) -> tuple[Backend, StreamBackend] | None:
    """Open the plans of the score graph, the streaming graph and its head, of one library.

    Returns:
        None if no library has all three that run here; why not is logged, where there are plans.

    Raises:
        InputError: the buckets do not ascend from 1.
    """
    return _first_that_runs(
        bundle,
        lambda flavor: (_open_plan(bundle, flavor, buckets), _open_stream_plan(bundle, flavor)),
    )


def is_compiled(backend: str) -> bool:
    """Whether `backend` names a TensorRT plan, of which each graph has its own."""
    return backend in _FLAVORS


def _choose(
    bundle: Bundle, backend: BackendName, providers: Sequence[Provider] | None
) -> tuple[tuple[Provider, ...], bool]:
    """Return ONNX Runtime's providers to ask for, and whether the first must start."""
    if backend not in get_args(BackendName):
        raise InputError(f"backend must be one of {get_args(BackendName)}, found {backend!r}")
    if providers is not None:
        if backend != "auto" or not providers or isinstance(providers, str):
            raise InputError("pass either backend or a list of providers, which stands in for it")
        for provider in providers:
            if not isinstance(provider, str | tuple):
                raise InputError(f"providers are names, or names with options; found {provider!r}")
        check_available(providers[0])
        return with_caches(bundle, providers), True
    if backend == "auto":
        cuda = "CUDAExecutionProvider" in available_providers()
        chosen, strict = _PROVIDERS["cuda" if cuda else "cpu"], False
    else:
        chosen, strict = _PROVIDERS[backend], True
    check_available(chosen[0])
    return chosen, strict


def _open_plan(bundle: Bundle, flavor: Flavor, buckets: Sequence[int] | None) -> Backend:
    from siren_runtime.backends.tensorrt.score import open_plan

    return open_plan(bundle, flavor, buckets)


def _open_stream_plan(bundle: Bundle, flavor: Flavor) -> StreamBackend:
    from siren_runtime.backends.tensorrt.stream import open_stream_plan

    return open_stream_plan(bundle, flavor)


def _first_that_runs(bundle: Bundle, open_flavor: Callable[[Flavor], _T]) -> _T | None:
    """What opens of the libraries that the bundle has plans of; None, and a warning, if none."""
    try:
        recorded = recorded_flavors(bundle)
    except BackendError as error:
        _log.warning("no plan of %s is used: %s", bundle.path, error)
        return None
    reasons = []
    for flavor in sorted(recorded):
        try:
            return open_flavor(flavor)
        except BackendError as error:  # noqa: PERF203 - there are two
            reasons.append(str(error))
    if reasons:
        _log.warning("no plan of %s is used: %s", bundle.path, " | ".join(reasons))
    return None
