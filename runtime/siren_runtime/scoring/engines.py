"""Which engines run a bundle's graphs: TensorRT plans, or ONNX Runtime on a GPU or the CPU."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast, get_args

from siren_runtime.backends.base import Backend, StreamBackend
from siren_runtime.backends.onnxruntime.cascade import CascadeBackend
from siren_runtime.backends.onnxruntime.providers import (
    Provider,
    available_providers,
    check_available,
    provider_name,
)
from siren_runtime.backends.onnxruntime.score import (
    OnnxRuntimeBackend,
    OnnxRuntimeSpansBackend,
)
from siren_runtime.backends.onnxruntime.session import SessionRequest, usable_threads
from siren_runtime.backends.onnxruntime.stream import OnnxRuntimeStreamBackend
from siren_runtime.backends.onnxruntime.stream_cascade import CascadeStreamBackend
from siren_runtime.backends.padding import checked_buckets
from siren_runtime.backends.tensorrt.library import Flavor
from siren_runtime.backends.tensorrt.plan import recorded_flavors
from siren_runtime.bundle.arguments import check_choice, truth_value
from siren_runtime.bundle.graphs import SPANS, STREAM_HEAD
from siren_runtime.bundle.manifest import Manifest
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


@dataclass(frozen=True)
class Request:
    """What a caller wants of engines; the arguments of `Guard.load`.

    Attributes:
        backend: "auto" takes a plan that runs here, else CUDA where it is available and starts,
            else the CPU; it logs why a plan was passed over. Any other name, and `providers`,
            which stands in for a name, gets what it asks for or an error.
        threads, session_options: ONNX Runtime's; one of them at most. Threads beyond the cores
            of this process are not taken.
        buckets: lengths that texts are padded to on a GPU.
        streaming: whether the streaming graph is to be opened at once, and to score too.
        exits: whether the segments of a bundle whose exits decide are to stand for its score graph,
            which ONNX Runtime's CPU can run.
        spans_graph: whether the graph that gives the means of spans too is to stand for the score
            graph, where there is one and ONNX Runtime runs it without CUDA's buffers.
    """

    backend: BackendName = "auto"
    threads: int | None = None
    providers: Sequence[Provider] | None = None
    session_options: Any = None
    buckets: Sequence[int] | None = None
    streaming: bool = False
    exits: bool = False
    spans_graph: bool = True

    def __post_init__(self) -> None:
        if self.threads is not None:
            object.__setattr__(self, "threads", usable_threads(self.threads))
        if self.buckets is not None:
            object.__setattr__(self, "buckets", checked_buckets(self.buckets))
        for name in ("streaming", "exits", "spans_graph"):
            object.__setattr__(self, name, truth_value(name, getattr(self, name)))

    @property
    def takes_any(self) -> bool:
        """Whether a plan may answer it: nothing in it is ONNX Runtime's."""
        return self.backend == "auto" and self.providers is None and self.session_options is None


@dataclass(frozen=True)
class Engines:
    """What runs a bundle's graphs.

    Attributes:
        score: runs the score graph; None: the streaming graph scores.
        open_stream: opens the streaming graph; None: there is none.
    """

    score: Backend | None
    open_stream: Callable[[], StreamBackend] | None = None


def open_engines(bundle: Bundle, request: Request) -> Engines:
    """Open what a request asks for; the rest later, at the first stream.

    | the bundle streams | the request | scores with | streams with |
    | --- | --- | --- | --- |
    | no | any | the score graph | nothing |
    | yes | a TensorRT library by name | its plan of the score graph | its plans of streams |
    | yes | not streaming | the score graph | plans if that is one, else as asked for |
    | yes | streaming, "auto" | plans of both, if both run here; else the next row | |
    | yes | streaming | the streaming graph in ONNX Runtime | the same |

    A log says where exits were asked for, and the whole guard scores every text all the same.

    Raises:
        BackendError: the library or the provider is missing, or cannot run the graph.
        BundleError: the graph's inputs or outputs are not those of guard.json.
        InputError: the request contradicts itself or is out of range.
    """
    engines = _open_engines(bundle, request)
    exits = request.exits and has_exits(bundle.manifest)
    by_stream = engines.score is None and _streams_leave(bundle, request)
    if exits and not (by_stream or isinstance(engines.score, CascadeBackend)):
        _log.warning(
            "%s: exits decide in ONNX Runtime on the CPU, in a guard that streams if it was "
            "exported with segments for that; here the whole guard scores every text",
            bundle.path,
        )
    return engines


def _open_engines(bundle: Bundle, request: Request) -> Engines:
    if not bundle.manifest.streams:
        return Engines(open_backend(bundle, request), None)
    if is_compiled(request.backend) or not request.streaming:
        score = open_backend(bundle, request)
        if is_compiled(score.name):
            request = replace(request, backend=cast("BackendName", score.name))
        return Engines(score, lambda: open_stream_backend(bundle, request))
    if request.takes_any and (plans := _open_plans(bundle, request.buckets)) is not None:
        return Engines(plans[0], lambda: plans[1])
    return Engines(None, lambda: open_stream_backend(bundle, request))


def open_backend(bundle: Bundle, request: Request = Request()) -> Backend:
    """Open the score graph of `bundle`: a plan in TensorRT, else score.onnx in ONNX Runtime.

    CUDA by name has bound buffers and CUDA graphs; named in `providers` it has neither.

    Raises:
        BackendError, BundleError, InputError: as `open_engines`.
    """
    if request.backend in _FLAVORS:
        if request.session_options is not None:
            raise InputError(
                f"session_options are ONNX Runtime's; the backend is {request.backend!r}"
            )
        return _open_plan(bundle, request.backend, request.buckets)
    if request.takes_any:
        plan = _first_that_runs(bundle, lambda flavor: _open_plan(bundle, flavor, request.buckets))
        if plan is not None:
            return plan
    asked = _sessions(request)
    if asked.providers is _PROVIDERS["cuda"]:
        from siren_runtime.backends.onnxruntime.cuda import open_cuda

        on_gpu = open_cuda(bundle, asked, request.buckets)
        if on_gpu is not None:
            return on_gpu
        asked = replace(asked, providers=_PROVIDERS["cpu"])
    if request.exits and has_exits(bundle.manifest) and _on_cpu(asked):
        return CascadeBackend(bundle, asked)
    if request.spans_graph and SPANS in bundle.manifest.graphs:
        return OnnxRuntimeSpansBackend(bundle, asked)
    return OnnxRuntimeBackend(bundle, asked)


def open_stream_backend(
    bundle: Bundle,
    request: Request = Request(),
) -> StreamBackend:
    """Open the streaming graph of `bundle` and its head, as `open_backend` the score graph.

    "auto" takes ONNX Runtime; `open_engines` looks for plans before.
    """
    if request.backend in _FLAVORS:
        return _open_stream_plan(bundle, request.backend)
    segments = _streams_leave(bundle, request)
    kind = CascadeStreamBackend if segments else OnnxRuntimeStreamBackend
    return kind(bundle, _sessions(request))


def _streams_leave(bundle: Bundle, request: Request) -> bool:
    """Whether the segments of the streaming graph are to stand for it."""
    exits = request.exits and has_exits(bundle.manifest) and _on_cpu(_sessions(request))
    return exits and STREAM_HEAD in bundle.manifest.graphs


def _on_cpu(asked: SessionRequest) -> bool:
    return provider_name(asked.providers[0]) == "CPUExecutionProvider"


def has_exits(manifest: Manifest) -> bool:
    """Whether a bundle has exits that decide."""
    return manifest.cascade is not None and manifest.cascade.decides


def is_compiled(backend: str) -> bool:
    """Whether `backend` names a TensorRT plan, of which each graph has its own."""
    return backend in _FLAVORS


def _open_plans(
    bundle: Bundle, buckets: Sequence[int] | None
) -> tuple[Backend, StreamBackend] | None:
    """The plans of the score graph, the streaming graph and its head, of one library.

    None if no library has all three that run here; why not is logged, where there are plans.
    """
    return _first_that_runs(
        bundle,
        lambda flavor: (_open_plan(bundle, flavor, buckets), _open_stream_plan(bundle, flavor)),
    )


def _sessions(request: Request) -> SessionRequest:
    """What sessions of ONNX Runtime are opened with."""
    backend, providers = request.backend, request.providers
    check_choice("backend", backend, get_args(BackendName))
    if providers is not None:
        if backend != "auto" or not providers or isinstance(providers, str):
            raise InputError("pass either backend or a list of providers, which stands in for it")
        for provider in providers:
            if not isinstance(provider, str | tuple):
                raise InputError(f"providers are names, or names with options; found {provider!r}")
        check_available(providers[0])
        return SessionRequest(tuple(providers), True, request.threads, request.session_options)
    if backend == "auto":
        cuda = "CUDAExecutionProvider" in available_providers()
        chosen, strict = _PROVIDERS["cuda" if cuda else "cpu"], False
    else:
        chosen, strict = _PROVIDERS[backend], True
    check_available(chosen[0])
    return SessionRequest(chosen, strict, request.threads, request.session_options)


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
