"""A guard opened as settings say, and how its callers share it."""

from siren_runtime.guard import Guard
from siren_runtime.serving.sharing import Sharing

from .settings import Settings
from .warming import warm

_GATHERED = 40  # characters, some 8 words: as encoders are evaluated (docs/streaming.md)


def open_guard(source: str, settings: Settings) -> Guard:
    """Open a guard and score a text, or a trajectory, since the first one is slower.

    Raises:
        SirenError: as `Guard.load` and `Guard.score`.
    """
    guard = Guard.load(
        source,
        backend=settings.backend,
        threads=settings.threads,
        streaming=settings.streaming,
        long_text=settings.long_text,
        spans=settings.spans,
        unreadable=settings.unreadable,
        max_tokens_per_text=settings.max_text_tokens,
        max_bytes_per_text=settings.max_text_bytes,
    )
    warm(guard)
    return guard


def reads_anew(guard: Guard) -> bool:
    """Whether a stream reads all of its text at each piece, and not only what is new."""
    return any(not manifest.streams for manifest in guard.manifests)


def gathered_by(guard: Guard, stride: int | None) -> int:
    """The characters of a stream that are gathered before it is read again.

    Args:
        stride: what was asked for; None is 0 where only what is new is read, and else 40.
    """
    if stride is not None:
        return stride
    return _GATHERED if reads_anew(guard) else 0


def sharing_of(settings: Settings) -> Sharing:
    """How callers share a guard."""
    return Sharing(
        runs=settings.runs,
        gather=settings.gather_ms / 1000,
        max_calls=settings.max_calls,
        max_waiting_tokens=settings.max_waiting_tokens,
        max_streams=settings.max_streams,
        max_stream_tokens=settings.max_stream_tokens,
    )
