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

from .console import one_line, report

_LINE_S = 30.0  # between two lines of a stage
_RATE_S = 600.0  # that a bar's rate is of; between two updates there may be minutes
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
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Bars":
        self._progress = Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(),
            _Amount(),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=_RATE_S,
            get_time=monotonic,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, _Lines] | None = None if self._console.is_terminal else {}
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, stage: str, done: int, total: int, *, share: float | None = None) -> None:
        """Show that `done` of `total` are done. It is a `Progress`.

        The bar, the rate and the time left go by the share of the work, where there is one.
        """
        key, name = "" if self._one else stage, one_line(self._names.get(stage, stage))
        in_bytes = stage in self._in_bytes
        worked = done if share is None else share * total  # done, were all alike
        if self._lines is not None:
            if key not in self._lines or self._lines[key].is_behind(worked):
                self._lines[key] = _Lines(worked)
            self._lines[key].update(name, done, total, worked, in_bytes=in_bytes)
            return
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(name, done=done, in_bytes=in_bytes)
        task = self._tasks[key]
        if worked < self._progress.tasks[task].completed:
            self._progress.reset(task)
        self._progress.update(task, description=name, completed=worked, total=total, done=done)

    def say(self, line: str) -> None:
        """Write a line above the bars."""
        self._console.print(Text(one_line(line)))


def _told(amount: float, *, in_bytes: bool) -> str:
    return decimal(int(amount)) if in_bytes else f"{amount:,}"


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        parts = (task.fields["done"], task.total or 0)
        return Text("/".join(_told(part, in_bytes=task.fields["in_bytes"]) for part in parts))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed, in_bytes=task.fields["in_bytes"]) if task.speed else "")


def _rate(amount: float, *, in_bytes: bool) -> str:
    return f"{decimal(int(amount)) if in_bytes else f'{amount:,.1f}'}/s"


class _Lines:
    """A stage in a log."""

    def __init__(self, worked: float) -> None:
        self._first = self._worked = worked
        self._begun = self._said = monotonic()
        self._is_done = False

    def is_behind(self, worked: float) -> bool:
        """Whether more was done than that before."""
        return worked < self._worked

    def update(self, name: str, done: int, total: int, worked: float, *, in_bytes: bool) -> None:
        """Write a line if one is due."""
        now = monotonic()
        self._worked = worked
        if self._is_done or (done < total and now - self._said < _LINE_S):
            return
        self._said, self._is_done = now, done >= total
        seconds, gained = now - self._begun, worked - self._first
        if self._is_done:
            how = f"in {timedelta(seconds=round(seconds))}"
        elif gained:
            left = timedelta(seconds=round((total - worked) * seconds / gained))
            how = f"{_rate(gained / seconds, in_bytes=in_bytes)}, {left} left"
        else:
            how = "no rate yet"
        parts = (_told(part, in_bytes=in_bytes) for part in (done, total))
        report(f"{name}: {' of '.join(parts)}, {how}")
