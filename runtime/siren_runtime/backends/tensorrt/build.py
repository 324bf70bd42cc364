"""Compile a bundle's graph into a plan, with the TensorRT of this machine."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from siren_runtime.backends.shapes import (
    Profile,
    check_profile,
    check_stream_profiles,
    default_head_profiles,
    default_profiles,
    default_stream_profiles,
)
from siren_runtime.bundle.files import write_whole
from siren_runtime.bundle.graphs import TensorSpec
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.bundle.reader import Bundle
from siren_runtime.bundle.types import Target
from siren_runtime.errors import BackendError, InputError

from .gpu import compute_capability
from .library import Library, LogLevel, make_logger, make_progress_monitor, open_interface
from .plan import (
    RECORD_VERSION,
    Plan,
    PlanRecord,
    plans_folder,
    source_hashes,
    write_plan,
)

PlanGraph = Literal["score", "stream", "head"]
_ERRORS_SHOWN = 3
_OTHER_SHAPES = "; try other profiles, whose greatest length is longer"


def build_plan(
    bundle: Bundle,
    library: Library,
    graph: PlanGraph = "score",
    *,
    profiles: Sequence[Profile] = (),
    workspace_bytes: int | None = None,
    compute_capabilities: Sequence[str] = (),
    log_level: LogLevel = "error",
    log: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Plan:
    """Compile one of the bundle's graphs into a plan under its `plans/`.

    Args:
        graph: "score"; or "stream", with which a guard reads only a stream's new tokens, and the
            "head" that goes with it.
        profiles: the shapes to compile for; by default one text, and batches of 1 to 32, up to
            the guard's max_length; one stream, and up to 8, of up to 2048 tokens.
        workspace_bytes: GPU memory that one layer may use; the library's own limit if None.
        compute_capabilities: GPUs to compile for (TensorRT-RTX only), such as "8.6"; by default
            its portable range, and with TensorRT the GPU of this machine.
        log: gets the library's messages at `log_level` or worse; its errors are raised. Those
            about a graph that was exported for another target, which is what is raised then, go
            to `log` if `log_level` asks for more than errors.
        progress: called as the build goes on; what it or `log` raises ends the build.

    Raises:
        BackendError: the library cannot parse or compile the graph, naming our node; there is no
            GPU and it needs one; or the plan cannot be written.
        InputError: the bundle has no such graph; a profile or a compute capability is out of
            range.
    """
    if graph not in bundle.manifest.graphs:
        raise InputError(
            f"{bundle.path}: the bundle has no {graph} graph, only "
            f"{', '.join(bundle.manifest.graphs)}"
        )
    spec = bundle.manifest.graphs[graph]
    shapes = _shapes(bundle, graph, profiles)
    targets = list(compute_capabilities)
    if not library.is_rtx and not targets:
        targets = [compute_capability()]
    folder = plans_folder(bundle)
    if not os.access(folder, os.W_OK):
        raise BackendError(f"{folder}: cannot be written, so there is no place for a plan")
    started = time.perf_counter()
    logger = make_logger(library, log_level, log)
    details = log if log_level != "error" else lambda line: None
    with logger.raised.deferred():
        builder = open_interface(library, "Builder", logger)
        network = builder.create_network(library.network_flags())
        _parse(library, logger, network, bundle, graph, details)
        config = builder.create_builder_config()
        config.clear_flag(library.trt.BuilderFlag.TF32)  # rounds what float32 multiplies to 10 bits
        if workspace_bytes is not None:
            config.set_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        library.target(config, compute_capabilities)
        _add_profiles(builder, config, spec.inputs, shapes)
        config.progress_monitor = make_progress_monitor(library, progress, logger.raised)
        timing = folder / f"{library.flavor}-{library.version}.timing-cache"
        _use_timing_cache(config, timing)
        serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        what = f"{bundle.path}: {library.flavor} {library.version} cannot compile the {graph} graph"
        errors = logger.errors[-_ERRORS_SHOWN:]
        raise _refusal(library, bundle, what, errors, _OTHER_SHAPES, details)
    write_whole(timing, memoryview(config.get_timing_cache().serialize()), BackendError)
    data = memoryview(serialized)
    record = PlanRecord(
        record_version=RECORD_VERSION,
        flavor=library.flavor,
        library_version=library.version,
        graph=graph,
        compute_capabilities=targets,
        profiles=shapes,
        sources=source_hashes(bundle, graph),
        size=data.nbytes,
        sha256=hashlib.sha256(data).hexdigest(),
        created=datetime.now(timezone.utc).isoformat(),
        build_seconds=round(time.perf_counter() - started, 3),
    )
    suffix = "-".join(["", *(f"sm{capability.replace('.', '')}" for capability in targets)])
    path = folder / f"{graph}-{library.flavor}-{library.version}{suffix}.plan"
    write_plan(path, data, record)
    return Plan(path, record)


def _refusal(
    library: Library,
    bundle: Bundle,
    what: str,
    errors: Sequence[str],
    advice: str,
    details: Callable[[str], None],
) -> BackendError:
    """Say what cannot be done and why: the bundle's target, where that is another library's."""
    manifest = bundle.manifest
    hint = _hint(library, manifest.target)
    settings = f"precision {manifest.precision}, target {manifest.target}"
    if not hint:
        return BackendError(
            f"{what} ({settings}): {' | '.join(errors) or 'no reason given'}{advice}"
        )
    for error in errors:
        details(error)
    return BackendError(f"{what} ({settings}; --log-level warning shows its errors){hint}")


def _parse(
    library: Library,
    logger: Any,
    network: Any,
    bundle: Bundle,
    graph: PlanGraph,
    details: Callable[[str], None],
) -> None:
    path = bundle.file(bundle.manifest.graphs[graph].file)
    parser = library.trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    described = [_describe(error) for error in errors[:_ERRORS_SHOWN]]
    if len(errors) > _ERRORS_SHOWN:
        described.append(f"and {len(errors) - _ERRORS_SHOWN} more")
    what = f"{path}: the ONNX parser of {library.flavor} {library.version} cannot take it"
    raise _refusal(library, bundle, what, described, "", details)


def _hint(library: Library, target: Target) -> str:
    """Say what to export for; nothing where that is the bundle's `target` already."""
    older = library.flavor == "tensorrt" and library.version.startswith("10.")
    wanted = "tensorrt10" if older else library.flavor
    return "" if target == wanted else f"; export for it with siren export --target {wanted}"


def _describe(error: Any) -> str:
    """Name our node, whose name carries its layer; `error` is an IParserError."""
    name, operator = str(error.node_name()), str(error.node_operator())
    node = f"node {name!r} ({operator}): " if name or operator else ""
    return f"{node}{error.desc()}"


def _use_timing_cache(config: Any, path: Path) -> None:
    """Start from the timings at `path`; from none where they are damaged or of another GPU."""
    kept = path.read_bytes() if path.is_file() else b""
    for data in (kept, b""):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return


def _shapes(bundle: Bundle, graph: PlanGraph, profiles: Sequence[Profile]) -> list[Profile]:
    max_length = bundle.manifest.text.max_length
    context = bundle.manifest.backbone.context_length or max_length
    if graph == "head":
        return list(profiles) or default_head_profiles()
    if graph == "stream":
        shapes = list(profiles) or default_stream_profiles(max_length, context)
        check_stream_profiles(shapes, context)
    else:
        shapes = list(profiles) or default_profiles(max_length)
        for profile in shapes:
            check_profile(profile, max_length)
    return shapes


def _add_profiles(
    builder: Any, config: Any, inputs: Sequence[TensorSpec], shapes: list[Profile]
) -> None:
    for shape in shapes:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            extents = (extent.shape(tensor.shape) for extent in (shape.min, shape.opt, shape.max))
            profile.set_shape(tensor.name, *extents)
        config.add_optimization_profile(profile)
