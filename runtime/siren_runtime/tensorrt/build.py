"""Compile a bundle's graph into a plan, with the TensorRT of this machine."""

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from siren_runtime.bundle import Bundle
from siren_runtime.errors import BackendError

from .gpu import compute_capability
from .library import Library, LogLevel, make_logger, make_progress_monitor, open_interface
from .plan import (
    RECORD_VERSION,
    Plan,
    PlanRecord,
    plans_folder,
    replace_file,
    source_hashes,
    write_plan,
)
from .profiles import Profile, check_profile, default_profiles

Step = Callable[[str, int, int], None]  # phase; steps done; in all
_GRAPH = "score"
_ERRORS_SHOWN = 3


def build_plan(
    bundle: Bundle,
    library: Library,
    *,
    profiles: Sequence[Profile] = (),
    workspace_bytes: int | None = None,
    compute_capabilities: Sequence[str] = (),
    log_level: LogLevel = "error",
    log: Callable[[str], None] = lambda line: None,
    progress: Step | None = None,
) -> Plan:
    """Compile the bundle's score graph into a plan under its `plans/`.

    The streaming graph is not compiled: a guard on a plan reads a stream anew at each feed, and
    ONNX Runtime is what reads only its new tokens.

    Args:
        profiles: the shapes to compile for; by default one text, and batches of 1 to 32, up to
            the guard's max_length.
        workspace_bytes: GPU memory that one layer may use; the library's own limit if None.
        compute_capabilities: GPUs to compile for (TensorRT-RTX only), such as "8.6"; by default
            its portable range, and with TensorRT the GPU of this machine.
        log: gets the library's messages at `log_level` or worse; its errors are raised.
        progress: called as the build goes on.

    Raises:
        BackendError: the library cannot parse or compile the graph, naming our node; there is no
            GPU and it needs one; or the plan cannot be written.
        InputError: a profile or a compute capability is out of range.
    """
    max_length = bundle.manifest.text.max_length
    shapes = list(profiles) or default_profiles(max_length)
    for profile in shapes:
        check_profile(profile, max_length)
    targets = list(compute_capabilities)
    if not library.is_rtx and not targets:
        targets = [compute_capability()]
    folder = plans_folder(bundle)
    started = time.perf_counter()
    logger = make_logger(library, log_level, log)
    builder = open_interface(library, "Builder", logger)
    network = builder.create_network(library.network_flags())
    _parse(library, logger, network, bundle.file(bundle.manifest.graphs[_GRAPH].file))
    config = builder.create_builder_config()
    if workspace_bytes is not None:
        config.set_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    library.target(config, compute_capabilities)
    inputs = [spec.name for spec in bundle.manifest.graphs[_GRAPH].inputs]
    _add_profiles(builder, config, inputs, shapes)
    if progress is not None:
        config.progress_monitor = make_progress_monitor(library, progress)
    timing = folder / f"{library.flavor}-{library.version}.timing-cache"
    _use_timing_cache(config, timing)

    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        manifest = bundle.manifest
        raise BackendError(
            f"{bundle.path}: {library.flavor} {library.version} cannot compile the {_GRAPH} graph "
            f"(precision {manifest.precision}, target {manifest.target}): "
            f"{' | '.join(logger.errors[-_ERRORS_SHOWN:]) or 'no reason given'}{_hint(library)}"
        )
    replace_file(timing, memoryview(config.get_timing_cache().serialize()))
    data = memoryview(serialized)
    record = PlanRecord(
        record_version=RECORD_VERSION,
        flavor=library.flavor,
        library_version=library.version,
        graph=_GRAPH,
        compute_capabilities=targets,
        profiles=shapes,
        sources=source_hashes(bundle, _GRAPH),
        size=data.nbytes,
        sha256=hashlib.sha256(data).hexdigest(),
        created=datetime.now(timezone.utc).isoformat(),
        build_seconds=round(time.perf_counter() - started, 3),
    )
    suffix = "-".join(["", *(f"sm{capability.replace('.', '')}" for capability in targets)])
    path = folder / f"{_GRAPH}-{library.flavor}-{library.version}{suffix}.plan"
    write_plan(path, data, record)
    return Plan(path, record)


def _parse(library: Library, logger: Any, network: Any, path: Path) -> None:
    parser = library.trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    described = [_describe(error) for error in errors[:_ERRORS_SHOWN]]
    if len(errors) > _ERRORS_SHOWN:
        described.append(f"and {len(errors) - _ERRORS_SHOWN} more")
    raise BackendError(
        f"{path}: the ONNX parser of {library.flavor} {library.version} cannot take it: "
        f"{' | '.join(described) or 'no reason given'}{_hint(library)}"
    )


def _hint(library: Library) -> str:
    older = library.flavor == "tensorrt" and library.version.startswith("10.")
    return f"; export for it with siren export --target {'tensorrt10' if older else library.flavor}"


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


def _add_profiles(builder: Any, config: Any, inputs: list[str], shapes: list[Profile]) -> None:
    for shape in shapes:
        profile = builder.create_optimization_profile()
        for name in inputs:
            profile.set_shape(name, tuple(shape.min), tuple(shape.opt), tuple(shape.max))
        config.add_optimization_profile(profile)
