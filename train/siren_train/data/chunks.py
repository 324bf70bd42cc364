"""Rows a chunk at a time."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from siren_runtime.bundle.progress import Progress, by_length

T = TypeVar("T")


def chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield `size` rows at a time, at the end what is left."""
    rest = iter(rows)
    while chunk := list(islice(rest, size)):
        yield chunk


def chunks_told(
    rows: Iterable[T], size: int, lengths: Iterable[int], stage: str, progress: Progress
) -> Iterator[list[T]]:
    """Yield `chunks`, and tell, `by_length`, how many rows are done before each and at the end."""
    tell, done = by_length(progress, stage, lengths), 0
    tell(done)
    for chunk in chunks(rows, size):
        yield chunk
        done += len(chunk)
        tell(done)
