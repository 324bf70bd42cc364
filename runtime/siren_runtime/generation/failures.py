"""What onnxruntime-genai raises, as an error of ours."""

import os
from pathlib import Path

from siren_runtime.errors import OF_BINDINGS, BackendError, raised_in

_HERE = f"{Path(__file__).parent}{os.sep}"


class GenaiFailures:
    """Raise what onnxruntime-genai raises in the block as a BackendError of `what`.

    The block is code of this folder.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OF_BINDINGS) and raised_in(error, _HERE):
            said = str(error) or type(error).__name__  # a MemoryError may say nothing
            raise BackendError(f"{self._what}: {said}") from error
