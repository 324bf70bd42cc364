"""Keys of JSON objects, of which each is to stand once.

Of one that stands twice some decoders take the first value and others the last, so that a text
might be judged by what another reader does not see.
"""

from collections.abc import Sequence
from typing import Any

from siren_runtime.errors import InputError


def repeated(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first key of an object that stands twice; None if there is none."""
    if len(dict(pairs)) == len(pairs):
        return None
    seen = set[str]()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs; for `json.loads(object_pairs_hook=once)`.

    Raises:
        InputError: a key stands twice.
    """
    key = repeated(pairs)
    if key is not None:
        raise InputError(f"an object names the key {key!r} twice")
    return dict(pairs)
