"""Folders that are there finished or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """Yield a place beside `folder`; what the block makes there becomes `folder` at the end.

    What an interrupted block left there is found again by the next one.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    yield unfinished
    unfinished.rename(folder)
