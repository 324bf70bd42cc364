"""Progress bars on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def progress_bar(
    description: str, total: int, *, in_bytes: bool = False
) -> Iterator[Callable[[int], object]]:
    """Show a bar while the block runs; it is given a function that moves the bar on by a count."""
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
