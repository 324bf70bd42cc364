"""Which errors are ONNX Runtime's own. They have no base."""

import os
from collections.abc import Callable
from pathlib import Path

from siren_runtime.errors import OF_BINDINGS, BackendError, raised_in

from .providers import import_onnxruntime


class EngineFailures:
    """Raise what ONNX Runtime raises in the block as a BackendError of what `describe` says of it.

    Anything else comes out as it is, such as what a signal's handler of the caller raises. One may
    be kept and entered again.
    """

    def __init__(self, describe: Callable[[Exception], str]) -> None:
        self._describe = describe

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and _is_of_onnxruntime(error):
            raise BackendError(self._describe(error)) from error


def _is_of_onnxruntime(error: Exception) -> bool:
    if type(error).__module__.startswith("onnxruntime."):
        return True
    folder = Path(str(import_onnxruntime().__file__)).parent
    return isinstance(error, OF_BINDINGS) and raised_in(error, f"{folder}{os.sep}")
