"""The two TensorRT libraries, and all in which they and their versions differ.

The Python API of `tensorrt` (10.3 to 11) and `tensorrt_rtx` is the same but for what this file
asks of the module that is there. TensorRT-RTX 1.7 was run; `tensorrt` was not.
"""

import gc
import importlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from siren_runtime.bundle.progress import Progress
from siren_runtime.errors import BackendError, InputError, install_hint, is_of_caller

Flavor = Literal["tensorrt", "tensorrt-rtx"]
LogLevel = Literal["error", "warning", "info", "verbose"]

_MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_OLDEST: dict[Flavor, tuple[int, int]] = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 2)}
_STARTING = threading.RLock()


@dataclass(frozen=True)
class Library:
    """An imported TensorRT. `trt` is its module, `version` the module's own."""

    flavor: Flavor
    trt: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        return self.flavor == "tensorrt-rtx"

    def network_flags(self) -> int:
        """Flags of a strongly typed network, which TensorRT 11 makes without being asked."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def target(self, config: Any, capabilities: Sequence[str]) -> None:
        """Compile for GPUs of these compute capabilities, such as "8.6"; none: the default.

        Raises:
            InputError: this library compiles for the GPU it runs on, or knows no such capability.
        """
        if not capabilities:
            return
        if not self.is_rtx:
            raise InputError(
                "tensorrt compiles for the GPU of the machine it runs on; only tensorrt-rtx takes "
                "compute capabilities"
            )
        known = {
            name.removeprefix("SM"): member
            for name, member in self.trt.ComputeCapability.__members__.items()
            if name.startswith("SM")
        }
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = known.get(capability.replace(".", ""))
            if member is None or not config.set_compute_capability(member, index):
                names = ", ".join(f"{name[:-1]}.{name[-1]}" for name in known)
                raise InputError(
                    f"compute capability {capability!r} is not one that tensorrt-rtx "
                    f"{self.version} compiles for: {names}"
                )

    def runtime_config(self, engine: Any, cache: Path) -> Any:
        """TensorRT-RTX's runtime settings with its kernel cache read; None for TensorRT."""
        if not self.is_rtx:
            return None
        settings = engine.create_runtime_config()
        settings.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        kernels = settings.create_runtime_cache()
        if cache.is_file():
            kernels.deserialize(cache.read_bytes())  # refused, and made anew, if out of date
        settings.set_runtime_cache(kernels)
        return settings


def load_library(flavor: Flavor) -> Library:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        BackendError: it is not installed, cannot be imported, or is older than supported.
    """
    try:
        trt = importlib.import_module(_MODULES[flavor])
        version = str(trt.__version__)
    except (ImportError, OSError, AttributeError) as error:
        if is_of_caller(error):
            raise
        raise BackendError(
            f"{flavor} cannot be imported ({error}); {install_hint(flavor)}; on Jetson use the "
            "TensorRT that JetPack brings"
        ) from error
    if _release(version) < _OLDEST[flavor]:
        oldest = ".".join(map(str, _OLDEST[flavor]))
        raise BackendError(f"{flavor} {version} is installed; this needs {oldest} or later")
    return Library(flavor, trt, version)


class Raised:
    """What is raised while TensorRT calls us, Control-C among it: its C++ would swallow that."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the first error of the block."""
        try:
            yield
        except BaseException as error:
            self.error = self.error or error

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise what was kept, of the handlers of signals too, at the end of the block."""
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # where signals are handled
            before = {number: signal.getsignal(number) for number in _INTERRUPTS}
        handlers = {number: found for number, found in before.items() if callable(found)}
        for number, handler in handlers.items():
            signal.signal(number, self._keeping(handler))
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self.error is not None:
                raise self.error

    def _keeping(self, handler: Callable[..., Any]) -> Callable[..., None]:
        def handle(*arguments: Any) -> None:
            with self.kept():
                handler(*arguments)

        return handle


def make_logger(library: Library, level: LogLevel, write: Callable[[str], None]) -> Any:
    """A TensorRT logger: errors gather in its `errors`, to be raised; other lines at `level` or
    worse go to `write`, and what that raises into its `raised`.
    """
    base: Any = library.trt.ILogger
    severities = base.Severity
    limit = int(getattr(severities, level.upper()))

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []
            self.raised = Raised()

        def log(self, severity: Any, message: str) -> None:
            with self.raised.kept():
                if int(severity) <= int(severities.ERROR):
                    self.errors.append(message)
                elif int(severity) <= limit:
                    write(message)

    return Logger()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Let Python collect no garbage meanwhile. While it starts, TensorRT holds a lock and logs; an
    older builder that the logger's Python happened to collect would wait for that lock for ever.

    One thread at a time is in it: the first to leave would let the others' garbage be collected.
    """
    with _STARTING:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


def open_interface(library: Library, kind: Literal["Builder", "Runtime"], logger: Any) -> Any:
    """Make one of TensorRT's top-level interfaces.

    Raises:
        BackendError: TensorRT cannot: no GPU, a driver too old for it, or no memory.
    """
    try:
        with _without_collection():
            return getattr(library.trt, kind)(logger)
    except (TypeError, RuntimeError) as error:  # its bindings say only that they got a null
        raise BackendError(
            f"{library.flavor} {library.version} cannot start its {kind.lower()}: "
            f"{' | '.join(logger.errors) or error}; check nvidia-smi and that the driver is new "
            "enough for it"
        ) from error


def make_progress_monitor(library: Library, progress: Progress, raised: Raised) -> Any:
    """A TensorRT progress monitor that calls `progress(phase, done, total)` for outermost phases.

    What that raises is kept in `raised`; the build ends at the next step once there is something.
    """
    base: Any = library.trt.IProgressMonitor

    class ProgressMonitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with raised.kept():
                if not parent_phase:
                    self._totals[phase_name] = num_steps
                    progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step_number: int) -> bool:
            with raised.kept():
                if phase_name in self._totals:
                    progress(phase_name, step_number + 1, self._totals[phase_name])
            return raised.error is None

        def phase_finish(self, phase_name: str) -> None:
            with raised.kept():
                total = self._totals.pop(phase_name, None)
                if total is not None:
                    progress(phase_name, total, total)

    return ProgressMonitor()


def _release(version: str) -> tuple[int, int]:
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return int(major), int(minor) if minor.isdecimal() else 0
