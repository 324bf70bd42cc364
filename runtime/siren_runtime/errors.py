"""The errors that siren-edge raises: one base, one class for each thing that can be at fault.

A message names the file, key or tensor, what was found, what was expected and what to do.
"""

import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

# Installed, what is needed lies there too.
_HERE: Final = f"{Path(__file__).parents[1]}{os.sep}"

# What pybind11's bindings of engines raise beside classes of their own: for C++'s exceptions, and
# for arguments of a wrong kind.
OF_BINDINGS: Final = RuntimeError, ValueError, TypeError, IndexError, OverflowError, MemoryError


def install_hint(extras: str) -> str:
    """The words of an error for how an extra, or several by commas, is installed.

    siren-edge is on no package index, so its name alone would be looked for among others' packages.
    """
    return f"pip install '.[{extras}]' in a checkout of siren-edge, or its 'FILE.whl[{extras}]'"


class SirenError(Exception):
    """Base of every error that siren-edge raises on purpose."""


class ArtifactError(SirenError):
    """A SIREN head artifact (siren_config.json, siren.safetensors) is unusable."""


class CheckpointError(SirenError):
    """A backbone checkpoint (config.json, safetensors shards, tokenizer.json) is unusable."""


class BundleError(SirenError):
    """A guard bundle is damaged, incomplete, hostile or of another format version."""


class BackendError(SirenError):
    """The inference runtime is missing, cannot load the graph, or gave no usable score."""


class InterruptedCall(SirenError):
    """A call ended without a verdict: its deadline passed, or its caller cancelled it."""


class BusyError(SirenError):
    """A shared guard has as much to do as it may have waiting; nothing was scored.

    Attributes:
        retry_after: seconds after which what waits now is probably done.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled with all that it is made of."""
        return type(self), (str(self), self.retry_after), self.__dict__


class InputError(SirenError, ValueError):
    """What the caller passed cannot be scored."""


class UnreadableError(InputError):
    """Too little of a text can be read to call it safe."""


class InputTypeError(InputError, TypeError):
    """What the caller passed is of a type that is none of what can be scored."""


def raised_in(error: BaseException, *places: str) -> bool:
    """Whether the code in one of `places`, or what it calls that is not Python, raised an error.

    A handler of a signal runs in the midst of any call and raises through it; its errors are the
    caller's, and are not.

    Args:
        places: files, or folders and a separator for all that is in them.
    """
    frame = _last_frame(error)
    return frame is not None and frame.f_code.co_filename.startswith(places)


def raised_in_python(error: BaseException) -> bool:
    """As `raised_in`, of Python's own library."""
    frame = _last_frame(error)
    return frame is not None and _package(frame) in sys.stdlib_module_names


def is_of_caller(error: BaseException) -> bool:
    """Whether the caller's code raised an error, as an alarm's handler raises a TimeoutError.

    That is code which is not of siren-edge, of Python or of an installed package. An error with a
    number is the system's.
    """
    frame = _last_frame(error)
    if frame is None or getattr(error, "errno", None) is not None or raised_in_python(error):
        return False
    file = frame.f_code.co_filename
    is_ours = _package(frame).startswith("siren_") or file.startswith(_HERE)
    return not is_ours and not _is_installed(file)


def _is_installed(file: str) -> bool:
    """Whether a file is an installed package's, as `pip install --target` installs it too."""
    if any(folder in file for folder in ("site-packages", "dist-packages")):
        return True
    from importlib.metadata import distributions  # slow to import, and rarely needed

    for one in distributions():
        folder = f"{Path(str(one.locate_file(''))).absolute()}{os.sep}"
        name = file.removeprefix(folder).replace(os.sep, "/")
        if file.startswith(folder) and f"\n{name}," in f"\n{one.read_text('RECORD')}":
            return True
    return False


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _last_frame(error: BaseException) -> FrameType | None:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return None if place is None else place.tb_frame
