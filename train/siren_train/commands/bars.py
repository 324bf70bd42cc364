"""How far long work is, on standard error: bars in a terminal, a line now and then in a log."""

from datetime import timedelta
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from siren_runtime.commands.console import report

_LINE_S = 30.0  # between two lines of a stage


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "")


class Bars:
    """What, how far, how fast, how long: a bar for each stage, made when it is first heard of.

    Where standard error is no terminal, nobody would see a bar before the end; there each stage
    writes a line every half minute and one when it is done.
    """

    def __enter__(self) -> "Bars":
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, _Lines] | None = None if console.is_terminal else {}
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done. It is a `Progress`."""
        if self._lines is not None:
            if stage not in self._lines:
                self._lines[stage] = _Lines(stage, done)
            self._lines[stage].update(done, total)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, completed=done)
        self._progress.update(self._tasks[stage], completed=done, total=total)


class _Lines:
    """A stage in a log."""

    def __init__(self, stage: str, done: int) -> None:
        self._stage, self._first = stage, done
        self._begun = self._said = monotonic()
        self._is_done = False

    def update(self, done: int, total: int) -> None:
        now = monotonic()
        if self._is_done or (done < total and now - self._said < _LINE_S):
            return
        self._said, self._is_done = now, done >= total
        seconds, gained = now - self._begun, done - self._first
        if self._is_done:
            how = f"in {timedelta(seconds=round(seconds))}"
        elif gained:
            left = timedelta(seconds=round((total - done) * seconds / gained))
            how = f"{gained / seconds:,.1f}/s, {left} left"
        else:
            how = "no rate yet"
        report(f"{self._stage}: {done:,} of {total:,}, {how}")
