"""How long work tells how far it is."""

from array import array
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Protocol


class Progress(Protocol):
    """What long work calls now and then."""

    def __call__(self, stage: str, done: int, total: int, *, share: float | None = None) -> None:
        """Tell how far a stage is.

        Args:
            stage: its name.
            done, total: how much of it is done and how much there is, in bytes, texts or layers.
            share: how much of its work is done, 0 to 1, where one text takes longer than another;
                None is `done` of `total`.
        """


def silent(stage: str, done: int, total: int, *, share: float | None = None) -> None:
    """Progress that nobody watches."""


def by_length(progress: Progress, stage: str, lengths: Iterable[int]) -> Callable[[int], None]:
    """Make what tells how far a stage is whose texts take longer the longer they are.

    Args:
        lengths: of the texts, in the order in which they are done, in any one unit.

    Returns:
        A function of how many are done.
    """
    read = array("q", accumulate(lengths, initial=0))

    def tell(done: int) -> None:
        progress(stage, done, len(read) - 1, share=read[done] / max(read[-1], 1))

    return tell


def suffixed(progress: Progress, suffix: str) -> Progress:
    """Progress whose stages have names that end so, to tell them from others of the same work."""

    def tell(stage: str, done: int, total: int, *, share: float | None = None) -> None:
        progress(f"{stage}{suffix}", done, total, share=share)

    return tell
