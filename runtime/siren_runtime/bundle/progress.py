"""How long work tells how far it is."""

from collections.abc import Callable

# The stage; how much of it is done, in bytes, texts or layers; how much there is in all.
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
