"""Load a guard bundle, score text, stream it. numpy, tokenizers and an inference runtime.

from siren_runtime import Guard

guard = Guard.load("engines/minilm/bundle")
guard.score("text").is_harmful
"""

from typing import TYPE_CHECKING

from .errors import (
    ArtifactError,
    BackendError,
    BundleError,
    CheckpointError,
    InputError,
    InterruptedCall,
    SirenError,
)
from .guard import Guard
from .scoring.result import ScoreResult

if TYPE_CHECKING:
    from .streaming.decision import AtTier, Decision, Hysteresis, Patience, Schedule
    from .streaming.handles import Stream, Streams
    from .streaming.result import StreamResult, TokenScore

    __version__: str
else:
    _STREAMING = {
        **dict.fromkeys(("AtTier", "Decision", "Hysteresis", "Patience", "Schedule"), "decision"),
        **dict.fromkeys(("Stream", "Streams"), "handles"),
        **dict.fromkeys(("StreamResult", "TokenScore"), "result"),
    }

    def __getattr__(name):  # what is slow to import, and only some need
        if name == "__version__":
            from importlib.metadata import version

            return version("siren-edge")
        if name in _STREAMING:
            from importlib import import_module

            return getattr(import_module(f".streaming.{_STREAMING[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ArtifactError",
    "AtTier",
    "BackendError",
    "BundleError",
    "CheckpointError",
    "Decision",
    "Guard",
    "Hysteresis",
    "InputError",
    "InterruptedCall",
    "Patience",
    "Schedule",
    "ScoreResult",
    "SirenError",
    "Stream",
    "StreamResult",
    "Streams",
    "TokenScore",
    "__version__",
]
