"""Run a bundle's score graph in ONNX Runtime, on the CPU or through a GPU provider."""

import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from siren_runtime.backends.base import Outputs, TokenArray
from siren_runtime.backends.tensorrt.plan import PLANS_FOLDER, plans_folder
from siren_runtime.bundle.graphs import TensorSpec, signature
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError, BundleError, InputError

Provider = str | tuple[str, Mapping[str, Any]]

_EXTRAS = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
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
_log = logging.getLogger(__name__)
_MAX_THREADS = 1024
_FATAL = 4  # ONNX Runtime's log level; errors are raised, so logging them too would say it twice


class OnnxRuntimeBackend:
    """A session over score.onnx. ONNX Runtime lets threads share one."""

    def __init__(
        self,
        bundle: Bundle,
        providers: Sequence[Provider],
        *,
        strict: bool,
        threads: int | None = None,
        session_options: Any = None,
    ) -> None:
        """Open the session; `strict` refuses a provider that ONNX Runtime lists but cannot start.

        Raises:
            BackendError, BundleError, InputError: as `open_backend`.
        """
        self._session, self.name = open_session(
            bundle,
            "score",
            providers,
            strict=strict,
            threads=threads,
            session_options=session_options,
        )
        self.token_budget = token_budget(self.name)
        head = bundle.manifest.head
        self._shapes = {"score": (), "logits": (head.classes,), "features": (head.features,)}

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded `input_ids` [batch, sequence]; the mask is 1 on real tokens.

        Raises:
            BackendError: ONNX Runtime failed or gave outputs of another shape.
        """
        batch, sequence = input_ids.shape
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        try:
            values = dict(zip(self._shapes, self._session.run([*self._shapes], feed), strict=True))
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed on a batch of {batch} texts by {sequence} tokens: {error}"
            ) from error
        for name, shape in self._shapes.items():
            if values[name].shape != (batch, *shape):
                raise BackendError(
                    f"the graph's output {name!r} has shape {values[name].shape}, expected "
                    f"{(batch, *shape)}; export the bundle again"
                )
        return Outputs(**values)


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
    try:
        session = _import_onnxruntime().InferenceSession(
            str(path), session_options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # its errors have no base of their own
        hint = ""
        if bundle.manifest.precision == "bf16":
            hint = "; a bf16 bundle runs on a TensorRT plan: compile one with siren build"
        raise BackendError(f"{path}: ONNX Runtime cannot load the graph: {error}{hint}") from error
    first = session.get_providers()[0]
    if strict and first != _name(providers[0]):
        raise BackendError(
            f"{_name(providers[0])} is installed but did not start, only {first} did; check "
            "the GPU, its driver and its libraries, or load with backend='cpu'"
        )
    _check_signature(str(path), "input", session.get_inputs(), graph.inputs)
    _check_signature(str(path), "output", session.get_outputs(), graph.outputs)
    return session, _NAMES.get(first, first)


def token_budget(backend: str) -> int:
    """Tokens, padding included, that run best in one batch on what `backend` names."""
    return _CPU_TOKEN_BUDGET if backend == "cpu" else _GPU_TOKEN_BUDGET


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


def available_providers() -> list[str]:
    """Return the names of the execution providers that this ONNX Runtime was built with.

    Raises:
        BackendError: onnxruntime is not installed.
    """
    providers: list[str] = _import_onnxruntime().get_available_providers()
    return providers


def check_available(provider: Provider) -> None:
    """Refuse a provider that this ONNX Runtime was not built with.

    Raises:
        BackendError: it is missing; the message names the extra that brings it.
    """
    name, found = _name(provider), available_providers()
    if name in found:
        return
    hint = "see ONNX Runtime's list of providers and the packages that bring them"
    if name in _EXTRAS:
        hint = (
            f"pip uninstall onnxruntime, then pip install 'siren-edge[{_EXTRAS[name]}]' (the two "
            "packages share one module)"
        )
    raise BackendError(f"ONNX Runtime has no {name} here, only {', '.join(found)}; {hint}")


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({error}); pip install 'siren-edge[cpu]', or "
            "'siren-edge[cuda]' on a machine with an NVIDIA GPU"
        ) from error
    module: ModuleType = onnxruntime
    return module


def _session_options(threads: int | None) -> Any:
    options = _import_onnxruntime().SessionOptions()
    options.log_severity_level = _FATAL
    if threads is not None:
        if not isinstance(threads, int) or not 1 <= threads <= _MAX_THREADS:
            raise InputError(
                f"threads must be a whole number from 1 to {_MAX_THREADS}, found {threads!r}"
            )
        options.intra_op_num_threads = threads
    return options


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _check_signature(path: str, kind: str, found: Sequence[Any], specs: list[TensorSpec]) -> None:
    actual = [
        TensorSpec(value.name, _DTYPES.get(value.type, value.type), value.shape) for value in found
    ]
    if signature(actual) != signature(specs):
        raise BundleError(
            f"{path}: the graph's {kind}s are {signature(actual)}, guard.json says "
            f"{signature(specs)}; the graph and the manifest belong to different bundles"
        )
