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
from .streaming.decision import AtTier, Decision, Hysteresis, Patience, Schedule
from .streaming.handles import Stream, Streams
from .streaming.result import StreamResult, TokenScore

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name):
        if name == "__version__":  # importlib.metadata is slow to import
            from importlib.metadata import version

            return version("siren-edge")
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
