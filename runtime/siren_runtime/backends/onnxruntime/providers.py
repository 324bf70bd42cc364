"""ONNX Runtime's execution providers: which are there, and what they are asked for."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import msgspec

from siren_runtime.backends.tensorrt.plan import plans_folder, source_hashes
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError, install_hint

Provider = str | tuple[str, Mapping[str, Any]]

# By itself, CUDA's provider rounds what float32 multiplies to 10 bits (TF32), from Ampere on.
CUDA_OPTIONS = {"use_tf32": "0"}

_CUDA = "CUDAExecutionProvider"
_TENSORRT, _TENSORRT_RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
_EXTRAS = {_CUDA: "cuda", _TENSORRT: "cuda"}
_log = logging.getLogger(__name__)


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime, with its telemetry off unless the environment says otherwise.

    From 1.29 on it looks up a host and writes a device's id under ~/.cache/Microsoft on Linux, and
    a child that is forked after the import never ends. It can only be stopped before the import.

    Raises:
        BackendError: it is not installed; the message names the extra that brings it.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({error}); {install_hint('cpu')}; cuda in the place "
            "of cpu on a machine with an NVIDIA GPU"
        ) from error
    module: ModuleType = onnxruntime
    return module


def available_providers() -> list[str]:
    """Return the names of the execution providers that this ONNX Runtime was built with.

    Raises:
        BackendError: onnxruntime is not installed.
    """
    providers: list[str] = import_onnxruntime().get_available_providers()
    return providers


def check_available(provider: Provider) -> None:
    """Refuse a provider that this ONNX Runtime was not built with.

    Raises:
        BackendError: it is missing; the message names the extra that brings it.
    """
    name, found = provider_name(provider), available_providers()
    if name in found:
        return
    hint = "see ONNX Runtime's list of providers and the packages that bring them"
    if name in _EXTRAS:
        hint = (
            f"pip uninstall onnxruntime, then {install_hint(_EXTRAS[name])} (the two packages "
            "share one module)"
        )
    raise BackendError(f"ONNX Runtime has no {name} here, only {', '.join(found)}; {hint}")


def provider_name(provider: Provider) -> str:
    """The name of a provider, with options or without."""
    return provider if isinstance(provider, str) else provider[0]


def with_options(bundle: Bundle, graph: str, providers: Sequence[Provider]) -> list[Provider]:
    """Give providers that are named without options those that they open a graph of ours with.

    CUDA's multiplies float32 as it is. TensorRT's keep caches in the bundle, since they compile at
    the first start, for minutes with TensorRT; where the folder cannot be made, as in a read-only
    bundle, they go without, and a warning says so. Not run on a GPU.
    """
    ours: dict[str, Mapping[str, Any]] = {_CUDA: CUDA_OPTIONS}
    if _TENSORRT in providers or _TENSORRT_RTX in providers:
        ours |= _caches(bundle, graph)
    return [
        (provider, ours[provider]) if isinstance(provider, str) and provider in ours else provider
        for provider in providers
    ]


def _caches(bundle: Bundle, graph: str) -> dict[str, Mapping[str, Any]]:
    """Options by which TensorRT's providers keep what they compile; none where they cannot.

    A cached engine holds weights, but ONNX Runtime finds it by names and versions alone. So its
    folder is named for what the graph is made of.
    """
    sources = msgspec.json.encode(source_hashes(bundle, graph), order="sorted")
    try:
        folder = str(plans_folder(bundle, "onnxruntime", hashlib.sha256(sources).hexdigest()))
    except BackendError as error:
        _log.warning("%s: TensorRT compiles anew at each start: %s", bundle.path, error)
        return {}
    return {
        _TENSORRT: {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": folder,
        },
        _TENSORRT_RTX: {"nv_runtime_cache_path": folder},
    }
