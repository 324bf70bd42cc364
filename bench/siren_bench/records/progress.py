"""How far a benchmark is, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from siren_runtime.bundle.progress import Progress
from siren_runtime.commands.bars import Bars

WRITING = "writing random weights"  # the stage that counts bytes

console = Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show one bar while the block runs, and yield the function that says how far it is."""
    with Bars(in_bytes=(WRITING,), one=True) as bars:
        yield bars.update
