"""A guard opened as settings say, and how its callers share it."""

from siren_runtime.bundle.manifest import Manifest
from siren_runtime.guard import Guard
from siren_runtime.serving.sharing import Sharing

from .settings import Settings


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
    first = "A first text is slower than those after it."
    if any(manifest.task == "trajectory" for manifest in guard.manifests):
        guard.score_trajectory(messages=[{"role": "user", "content": first}])
    else:
        guard.score(first)
    return guard


def sharing_of(settings: Settings, guard: Guard) -> Sharing:
    """How callers share a guard."""
    return Sharing(
        runs=settings.runs,
        gather=settings.gather_ms / 1000,
        max_calls=settings.max_calls,
        max_waiting_tokens=settings.max_waiting_tokens,
        max_streams=settings.max_streams,
        max_stream_tokens=min(settings.max_stream_tokens, *map(_longest, guard.manifests)),
    )


def _longest(manifest: Manifest) -> int:
    """The tokens that a stream can hold: what the backbone can, or what a whole text may have."""
    return manifest.backbone.context_length or manifest.text.max_length
