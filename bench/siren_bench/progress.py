"""Progress bars on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from siren_runtime.bundle.progress import Progress

console = Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def progress_bar(*, in_bytes: bool = False) -> Iterator[Progress]:
    """Show a bar while the block runs, and yield the function that says how far it is."""
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn()
    with Bars(*columns, console=console) as bars:
        task = bars.add_task("starting", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bars.update(task, description=stage, completed=done, total=total)

        yield show
