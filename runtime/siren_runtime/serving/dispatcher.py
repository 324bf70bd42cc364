"""The owner of the queue: what waits, which engine run is next, and who is refused."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from siren_runtime.bundle.arguments import truth_value
from siren_runtime.errors import BackendError, BusyError, InputError, InterruptedCall
from siren_runtime.guard import Guard
from siren_runtime.streaming.handles import Stream, Streams
from siren_runtime.streaming.reader import Between, nothing
from siren_runtime.streaming.result import StreamResult
from siren_runtime.text.deadline import NO_DEADLINE, Deadline

from .answers import fail, settle
from .feeds import Feed, WaitingFeeds, is_short, read
from .pending import PendingCall
from .sharing import DEFAULT_SHARING, Run, Sharing, ignore
from .waiting import Waiting, WaitingWindows

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_RECENT = 0.1  # weight of the last run in the mean speed
# A queue that was full takes calls again once no more than so much of it is. Were it at the first
# token that is free, every other call would be tokenized before it is refused.
_DRAINED = 7 / 8


class Dispatcher:
    """Batches what callers of a guard ask by token budget, in threads of its own.

    Whoever waits is answered, with a verdict or an error; whoever has gone costs no engine run.
    """

    def __init__(
        self,
        guard: Guard,
        sharing: Sharing = DEFAULT_SHARING,
        on_run: Callable[[Run], None] = ignore,
    ) -> None:
        """Start the threads, one for each engine run at once.

        Args:
            on_run: called after each run, in its thread; it must be quick. Errors of it are logged.
        """
        self.guard, self.sharing, self._on_run = guard, sharing, on_run
        self._windows, self._feeds = WaitingWindows(), WaitingFeeds()
        self._tasks: deque[tuple[Callable[[], None], Stream | None]] = deque()
        self._reading: set[Stream] = set()
        self._is_long = False  # whether what is read takes more than a moment
        self._streams: Streams | None = None
        self._turn = self._calls = 0
        self._occupied = self._closing = self._dropping = self._full = False
        self._speed = 0.0  # tokens a second
        self._budgets = [sharing.budget_of(scorer.backend) for scorer in guard.scorers]
        self._changed = threading.Condition()
        self._answering = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"siren-run-{number}", daemon=True)
            for number in range(sharing.runs)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> tuple[int, int, int]:
        """Calls under way, tokens of texts that wait, pieces of streams that wait."""
        with self._changed:
            return self._calls, self._windows.tokens, len(self._feeds)

    def refusal(self) -> BusyError | None:
        """Why a call is refused before anything is done for it; None where it is not.

        As many calls as may be are under way; or one was refused since the queue is full, and an
        eighth of it is not free yet.
        """
        with self._changed:
            if self._calls >= self.sharing.max_calls:
                return self._busy(f"{self._calls} calls are under way")
            return self._busy(f"{self._windows.tokens:,} tokens wait") if self._full else None

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a call while it is under way.

        Raises:
            BusyError: as `refusal`.
            BackendError: closed.
        """
        with self._changed:
            self._check_open()
            if (busy := self.refusal()) is not None:
                raise busy
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                if self._closing:
                    self._changed.notify_all()

    def submit(self, call: PendingCall) -> None:
        """Let a call's windows wait for their runs; `call.future` has the results.

        Raises:
            BusyError: with it, more tokens would wait than may.
            BackendError: closed, and not to answer what was admitted before.
        """
        with self._changed:
            if self._dropping:
                self._check_open()
            if not self._has_room(call.tokens):
                self._full = self._is_nearly_full()
                raise self._busy(f"{self._windows.tokens:,} tokens wait")
            self._turn = self._windows.add(call, self._turn, time.monotonic())
            self._changed.notify()
        call.answer_if_done()

    def feed(
        self, stream: Stream, piece: str, deadline: Deadline = NO_DEADLINE, *, last: bool = False
    ) -> "Future[StreamResult]":
        """Let a piece, the last one or not, wait for its stream to be read, until a deadline.

        Raises:
            InputError: the piece is no text, or `last` no truth value.
            BackendError: closed.
        """
        if not isinstance(piece, str):
            raise InputError(f"a piece of a stream must be a str, found {type(piece).__name__}")
        last = truth_value("last", last)
        future: Future[StreamResult] = Future()
        with self._changed:
            self._check_open()
            self._turn += 1
            since = time.monotonic()
            self._feeds.add(Feed(stream, piece, last, deadline, future, self._turn, since))
            self._changed.notify()
        return future

    def with_streams(
        self, task: Callable[[Streams], _T], stream: Stream | None = None
    ) -> "Future[_T]":
        """Do something with the streams between two runs. The first time they are opened, in one
        thread; the others score texts meanwhile.

        Args:
            stream: that it is done with, which is not to be read meanwhile.

        Raises:
            BackendError: closed.
        """
        future: Future[Any] = Future()
        with self._changed:
            self._check_open()
            done = partial(settle, future, lambda: task(self._opened()))
            self._tasks.append((done, stream))
            self._changed.notify()
        return future

    def discard(self, stream: Stream) -> None:
        """Close a stream between two runs; nobody waits for that."""
        with self._changed:
            if not self._closing:  # which closes all
                self._tasks.append((stream.close, stream))
                self._changed.notify()

    def close(self, *, drain: bool = True) -> None:
        """Take nothing more in, and end the threads once all that was admitted is answered.

        Args:
            drain: with verdicts; else with an error.
        """
        with self._changed:
            self._closing = True
            if not drain:
                self._dropping = True
                closed = BackendError("the guard was closed before the text's turn came")
                for call in self._windows.calls():
                    call.fail(closed)
                for feed in self._feeds.clear():
                    fail(feed.future, closed)
                self._windows.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        if self._streams is not None:
            self._streams.close()

    def _check_open(self) -> None:
        if self._closing:
            raise BackendError("the guard is closed; load it again")

    def _has_room(self, tokens: int) -> bool:
        """Whether so many more may wait. A large call, whose turn comes window by window, leaves
        half of the room to others.
        """
        waiting, most = self._windows.tokens, self.sharing.max_waiting_tokens
        if not waiting or waiting + tokens <= most:
            return True
        return self._windows.counted(most // 2) + tokens <= most

    def _is_nearly_full(self) -> bool:
        most = self.sharing.max_waiting_tokens
        return self._windows.tokens > _DRAINED * most < self._windows.counted(most // 2)

    def _busy(self, why: str) -> BusyError:
        tokens = self._windows.tokens
        seconds = tokens / (self._speed * self.sharing.runs) if self._speed else 1.0
        return BusyError(f"the queue is full: {why}; try again in {seconds:.1f} s", seconds)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            _do(job)

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do; None at the end."""
        with self._changed:
            while True:
                job, pause = self._choose()
                if job is not None:
                    if self._tasks or self._windows or self._feeds:
                        self._changed.notify()
                    return job
                if self._has_ended(pause):
                    self._changed.notify_all()
                    return None
                self._changed.wait(pause)

    def _has_ended(self, pause: float | None) -> bool:
        """Whether nothing is left, and nothing may come."""
        admitted = self._calls and not self._dropping
        return self._closing and pause is None and not self._occupied and not admitted

    def _choose(self) -> tuple[Callable[[], None] | None, float | None]:
        """The next thing to do, or the seconds after which there may be one."""
        if self._tasks and not self._occupied:  # the streams are free, so that no thread waits
            task, _ = self._tasks.popleft()
            if self._streams is not None:
                return task, None
            self._occupied = True
            return partial(self._occupy, task), None
        window = self._first_window()
        feed = None if self._occupied else self._feeds.first()
        if feed is not None and (window is None or feed.turn < window.turn):
            feeds, self._occupied = self._feeds.take(), True
            self._reading = {feed.stream for feed in feeds}
            self._is_long = not all(map(is_short, feeds))
            reading = partial(self._read_and_count, feeds, self._meanwhile)
            return partial(self._occupy, reading), None
        if window is None:
            return None, None
        left = window.since + self.sharing.gather - time.monotonic()
        is_full = self._windows.tokens >= self._budgets[window.member]
        if left > 0 and not self._closing and not is_full:
            return None, left
        batch = self._take_windows()
        if not batch:  # all that waited have ended meanwhile
            return self._choose()
        return lambda: self._score(batch), None

    def _first_window(self) -> Waiting | None:
        """The window whose turn it is; calls whose time is up are told."""
        window = self._windows.first(time.monotonic())
        if window is None:
            self._full = False
        return window

    def _take_windows(self) -> list[Waiting]:
        """The windows of the next run; none where all that waited have ended."""
        batch = self._windows.take(self._budgets)
        self._full = self._full and self._is_nearly_full()
        return batch

    def _score(self, batch: Sequence[Waiting]) -> None:
        member, started = batch[0].member, time.monotonic()
        windows = {number: waiting.window for number, waiting in enumerate(batch)}
        try:
            scored = self.guard.scorers[member].run(
                windows, self._budgets[member], lambda _: _check_any(batch)
            )
        except InterruptedCall:
            with self._answering:
                for window in batch:
                    window.call.has_ended()
            return
        except Exception as error:  # the callers' to see, not this thread's to end of
            with self._answering:
                for window in batch:
                    window.call.fail(error)
            return
        seconds = time.monotonic() - started
        with self._answering:
            for number, window in enumerate(batch):
                window.call.take(member, {window.key: scored[number]})
        tokens = sum(waiting.length for waiting in batch)
        self._speed += (tokens / seconds - self._speed) * (_RECENT if self._speed else 1)
        waited = [started - window.since for window in batch]
        self._on_run(Run("score", len(batch), tokens, seconds, waited))

    def _occupy(self, job: Callable[[], None]) -> None:
        """Do what one thread alone does with streams: read them, or open them."""
        try:
            job()
        finally:
            with self._changed:
                self._occupied, self._reading = False, set()
                self._changed.notify_all()

    def _meanwhile(self) -> None:
        """Do what takes a moment, of other streams, between two engine runs of pieces; where one of
        these is long, a run of texts too, if no other thread is there for them.
        """
        with self._changed:
            feeds = self._feeds.take_short(self._reading)
            ready = [task for task in self._tasks if task[1] not in self._reading]
            self._tasks = deque(task for task in self._tasks if task[1] in self._reading)
            waits = self._first_window() is not None
            alone = self._is_long and self.sharing.runs == 1
            batch = self._take_windows() if waits and alone else []
        for task, _ in ready:
            _do(task)
        if feeds:
            _do(lambda: self._read_and_count(feeds, nothing))
        if batch:
            _do(lambda: self._score(batch))

    def _read_and_count(self, feeds: list[Feed], between: Between) -> None:
        started, others = time.monotonic(), 0.0

        def counted() -> None:
            nonlocal others
            begun = time.monotonic()
            between()
            others += time.monotonic() - begun

        read(self._opened(), feeds, counted)
        seconds = time.monotonic() - started - others
        answered = [feed for feed in feeds if not feed.future.cancelled()]
        results = [f.future.result() for f in answered if f.future.exception() is None]
        tokens = sum(result.computed for result in results)
        waited = [started - feed.since for feed in answered]
        self._on_run(Run("stream", len(answered), tokens, seconds, waited))

    def _opened(self) -> Streams:
        """The streams; one thread alone opens them (`_occupy`)."""
        if self._streams is None:
            most = self.sharing.max_stream_tokens
            if most is not None:  # a plan, or a guard that reads anew, may hold fewer
                most = min(most, self.guard.streams().max_tokens)
            self._streams = self.guard.streams(
                max_streams=self.sharing.max_streams, max_tokens=most
            )
        return self._streams


def _do(job: Callable[[], None]) -> None:
    """Do something, and live on: those who come later need this thread."""
    try:
        job()
    except Exception:
        _log.exception("a thread of a shared guard goes on after an error")


def _check_any(batch: Sequence[Waiting]) -> None:
    """Go on while somebody waits for a window of a run.

    Raises:
        InterruptedCall: all have gone, or their time is up.
    """
    for waiting in batch[:-1]:
        with suppress(InterruptedCall):
            waiting.call.check()
            return
    batch[-1].call.check()
