"""The errors that siren-edge raises: one base, one class for each thing that can be at fault.

A message names the file, key or tensor, what was found, what was expected and what to do.
"""

from typing import Any


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


def raised_in(error: BaseException, file: str) -> bool:
    """Whether the code in `file`, or what it calls that is not Python, raised an error.

    A handler of a signal runs in the midst of any call and raises through it; its errors are the
    caller's, and are not.

    Args:
        file: a file, or a folder and a separator for all that is in it.
    """
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_code.co_filename.startswith(file)
