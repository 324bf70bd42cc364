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
    BusyError,
    CheckpointError,
    InputError,
    InterruptedCall,
    SirenError,
)
from .guard import Guard
from .scoring.result import ScoreResult

if TYPE_CHECKING:
    from .generation.generation import Generation, Piece
    from .generation.generator import GuardedGenerator
    from .generation.sampling import Sampling
    from .scoring.trajectory_stream import TrajectoryResult, TrajectoryStream
    from .serving.asynchronous import AsyncGuard, AsyncStream
    from .serving.shared import SharedGuard
    from .serving.sharing import Run, Sharing
    from .streaming.decision import AtTier, Decision, Hysteresis, Patience, Schedule
    from .streaming.handles import Stream, Streams
    from .streaming.result import StreamResult, TokenScore
    from .text.trajectory import Trajectory, Turn

    __version__: str
else:
    _RULES = ("AtTier", "Decision", "Hysteresis", "Patience", "Schedule")
    _LATER = {
        **dict.fromkeys(("Generation", "Piece"), "generation.generation"),
        "GuardedGenerator": "generation.generator",
        "Sampling": "generation.sampling",
        **dict.fromkeys(_RULES, "streaming.decision"),
        **dict.fromkeys(("Stream", "Streams"), "streaming.handles"),
        **dict.fromkeys(("StreamResult", "TokenScore"), "streaming.result"),
        **dict.fromkeys(("Trajectory", "Turn"), "text.trajectory"),
        **dict.fromkeys(("TrajectoryResult", "TrajectoryStream"), "scoring.trajectory_stream"),
        **dict.fromkeys(("AsyncGuard", "AsyncStream"), "serving.asynchronous"),
        **dict.fromkeys(("Run", "Sharing"), "serving.sharing"),
        "SharedGuard": "serving.shared",
    }

    def __getattr__(name):  # what is slow to import, and only some need
        if name == "__version__":
            from importlib.metadata import version

            return version("siren-edge")
        if name in _LATER:
            from importlib import import_module

            return getattr(import_module(f".{_LATER[name]}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ArtifactError",
    "AsyncGuard",
    "AsyncStream",
    "AtTier",
    "BackendError",
    "BundleError",
    "BusyError",
    "CheckpointError",
    "Decision",
    "Generation",
    "Guard",
    "GuardedGenerator",
    "Hysteresis",
    "InputError",
    "InterruptedCall",
    "Patience",
    "Piece",
    "Run",
    "Sampling",
    "Schedule",
    "ScoreResult",
    "SharedGuard",
    "Sharing",
    "SirenError",
    "Stream",
    "StreamResult",
    "Streams",
    "TokenScore",
    "Trajectory",
    "TrajectoryResult",
    "TrajectoryStream",
    "Turn",
    "__version__",
]
