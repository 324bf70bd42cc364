"""ONNX Runtime's execution providers: which are there, and what they are asked for."""

import logging
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from siren_runtime.backends.tensorrt.plan import PLANS_FOLDER, plans_folder
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError

Provider = str | tuple[str, Mapping[str, Any]]

_EXTRAS = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
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
            f"onnxruntime cannot be imported ({error}); pip install 'siren-edge[cpu]', or "
            "'siren-edge[cuda]' on a machine with an NVIDIA GPU"
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
            f"pip uninstall onnxruntime, then pip install 'siren-edge[{_EXTRAS[name]}]' (the two "
            "packages share one module)"
        )
    raise BackendError(f"ONNX Runtime has no {name} here, only {', '.join(found)}; {hint}")


def provider_name(provider: Provider) -> str:
    """The name of a provider, with options or without."""
    return provider if isinstance(provider, str) else provider[0]


def with_caches(bundle: Bundle, providers: Sequence[Provider]) -> tuple[Provider, ...]:
    """Give TensorRT's providers, where they are named without options, caches in the bundle.

    They compile at the first start, for minutes with TensorRT. Where the folder cannot be made,
    as in a read-only bundle, they go without, and a warning says so. Not run on a GPU.
    """
    if not any(_caches(provider, "") for provider in providers):
        return tuple(providers)
    folder = bundle.path / PLANS_FOLDER / "onnxruntime"
    try:
        plans_folder(bundle)
        folder.mkdir(exist_ok=True)  # TensorRT's provider makes no parents
    except (BackendError, OSError) as error:
        _log.warning("%s: TensorRT compiles anew at each start: %s", bundle.path, error)
        return tuple(providers)
    return tuple(_caches(provider, str(folder)) or provider for provider in providers)


def _caches(provider: Provider, folder: str) -> Provider | None:
    """The provider with its caches in `folder`; None if it has options or keeps no caches."""
    options: Mapping[str, Mapping[str, Any]] = {
        "TensorrtExecutionProvider": {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": folder,
        },
        "NvTensorRTRTXExecutionProvider": {"nv_runtime_cache_path": folder},
    }
    if not isinstance(provider, str) or provider not in options:
        return None
    return provider, options[provider]
