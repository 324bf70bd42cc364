"""How far a benchmark is, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from siren_runtime.bundle.progress import Progress
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import one_line

WRITING = "writing random weights"  # the stage that counts bytes

console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """Write a line on standard error; control characters of hostile names stay harmless."""
    console.print(Text(one_line(line)), soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show one bar while the block runs, and yield the function that says how far it is."""
    with Bars(in_bytes=(WRITING,), one=True) as bars:
        yield bars.update
