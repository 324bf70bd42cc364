"""What a threshold may be, for guards, streams and rules alike."""

from typing import SupportsFloat

from siren_runtime.errors import InputError


def checked_threshold(value: SupportsFloat, name: str = "threshold") -> float:
    """Return a threshold as a float; `name` is what errors call it.

    Raises:
        InputError: it is not a number from 0 to 1.
    """
    try:
        threshold = value.__float__()
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a number, found {value!r}") from None
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"{name} must lie from 0 to 1, found {threshold}")
    return threshold
