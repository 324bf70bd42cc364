"""How far long work is, on standard error: bars in a terminal, a line now and then in a log."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from time import monotonic
from types import MappingProxyType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from .console import report

_LINE_S = 30.0  # between two lines of a stage
_AS_THEY_ARE: Mapping[str, str] = MappingProxyType({})


class Bars:
    """What, how far, how fast, how long: a bar for each stage, made when it is first heard of.

    Where standard error is no terminal, nobody would see a bar before the end; there each stage
    writes a line every half minute and one when it is done. A stage that falls back begins anew.
    """

    def __init__(
        self,
        names: Mapping[str, str] = _AS_THEY_ARE,
        *,
        in_bytes: Collection[str] = (),
        one: bool = False,
    ) -> None:
        """Set up without showing anything.

        Args:
            names: what stages are called where it is not their own name.
            in_bytes: stages that count bytes.
            one: all stages share one bar, which is called what the last one is.
        """
        self._names, self._in_bytes, self._one = names, in_bytes, one
        self._console = Console(
            stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False
        )

    def __enter__(self) -> "Bars":
        self._progress = Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(),
            _Amount(),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, _Lines] | None = None if self._console.is_terminal else {}
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done. It is a `Progress`."""
        key, name = "" if self._one else stage, self._names.get(stage, stage)
        in_bytes = stage in self._in_bytes
        if self._lines is not None:
            if key not in self._lines or self._lines[key].is_behind(done):
                self._lines[key] = _Lines(done)
            self._lines[key].update(name, done, total, in_bytes=in_bytes)
            return
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(name, completed=done, in_bytes=in_bytes)
        task = self._tasks[key]
        self._progress.update(task, description=name, completed=done, total=total)

    def say(self, line: str) -> None:
        """Write a line above the bars."""
        self._console.print(line)


def _told(amount: float, *, in_bytes: bool) -> str:
    return decimal(int(amount)) if in_bytes else f"{amount:,}"


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        parts = (task.completed, task.total or 0)
        return Text("/".join(_told(part, in_bytes=task.fields["in_bytes"]) for part in parts))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed, in_bytes=task.fields["in_bytes"]) if task.speed else "")


def _rate(amount: float, *, in_bytes: bool) -> str:
    return f"{decimal(int(amount)) if in_bytes else f'{amount:,.1f}'}/s"


class _Lines:
    """A stage in a log."""

    def __init__(self, done: int) -> None:
        self._first = self._done = done
        self._begun = self._said = monotonic()
        self._is_done = False

    def is_behind(self, done: int) -> bool:
        """Whether more was done than that before."""
        return done < self._done

    def update(self, name: str, done: int, total: int, *, in_bytes: bool) -> None:
        """Write a line if one is due."""
        now = monotonic()
        self._done = done
        if self._is_done or (done < total and now - self._said < _LINE_S):
            return
        self._said, self._is_done = now, done >= total
        seconds, gained = now - self._begun, done - self._first
        if self._is_done:
            how = f"in {timedelta(seconds=round(seconds))}"
        elif gained:
            left = timedelta(seconds=round((total - done) * seconds / gained))
            how = f"{_rate(gained / seconds, in_bytes=in_bytes)}, {left} left"
        else:
            how = "no rate yet"
        parts = (_told(part, in_bytes=in_bytes) for part in (done, total))
        report(f"{name}: {' of '.join(parts)}, {how}")
