"""A guard's first score, which is slower than those after it."""

from siren_runtime.guard import Guard

_FIRST = "A first text is slower than those after it."


def warm(guard: Guard) -> None:
    """Score a text, or a trajectory.

    Raises:
        SirenError: as `Guard.score`.
    """
    if any(manifest.is_trajectory for manifest in guard.manifests):
        guard.score_trajectory(messages=[{"role": "user", "content": _FIRST}])
    else:
        guard.score(_FIRST)
