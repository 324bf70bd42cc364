"""Inference runtimes that a bundle's graph runs on, chosen by name."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from siren_runtime.bundle import Bundle
from siren_runtime.errors import InputError

from .base import Backend, Outputs, StreamBackend
from .onnx_runtime import OnnxRuntimeBackend, Provider, available_providers, check_available
from .onnx_stream import OnnxRuntimeStreamBackend

BackendName = Literal["auto", "cpu", "cuda", "tensorrt"]

# Each provider takes the nodes it can and leaves the rest to the next.
_PROVIDERS: Mapping[BackendName, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}

__all__ = [
    "Backend",
    "BackendName",
    "Outputs",
    "Provider",
    "StreamBackend",
    "open_backend",
    "open_stream_backend",
]


def open_backend(
    bundle: Bundle,
    backend: BackendName = "auto",
    *,
    threads: int | None = None,
    providers: Sequence[Provider] | None = None,
    session_options: Any = None,
) -> Backend:
    """Open the score graph of `bundle` in ONNX Runtime.

    "auto" takes CUDA where it is available and starts, else the CPU. Any other name, and
    `providers`, which stands in for a name, gets what it asks for or an error.

    Raises:
        BackendError: ONNX Runtime or the provider is missing, or cannot run the graph.
        BundleError: the graph's inputs or outputs are not those of guard.json.
        InputError: the arguments contradict each other or are out of range.
    """
    chosen, strict = _choose(backend, providers)
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
    """Open the streaming graph of `bundle` and its head; arguments and errors as `open_backend`."""
    chosen, strict = _choose(backend, providers)
    return OnnxRuntimeStreamBackend(
        bundle, chosen, strict=strict, threads=threads, session_options=session_options
    )


def _choose(
    backend: BackendName, providers: Sequence[Provider] | None
) -> tuple[tuple[Provider, ...], bool]:
    """Return the providers to ask for, and whether the first must start."""
    if backend not in get_args(BackendName):
        raise InputError(f"backend must be one of {get_args(BackendName)}, found {backend!r}")
    chosen: tuple[Provider, ...]
    if providers is not None:
        if backend != "auto" or not providers:
            raise InputError("pass either backend or a list of providers, which stands in for it")
        chosen, strict = tuple(providers), True
    elif backend == "auto":
        cuda = "CUDAExecutionProvider" in available_providers()
        chosen, strict = _PROVIDERS["cuda" if cuda else "cpu"], False
    else:
        chosen, strict = _PROVIDERS[backend], True
    check_available(chosen[0])
    return chosen, strict
