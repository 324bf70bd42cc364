"""Pieces that wait for their streams to be read."""

from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass

from siren_runtime.errors import InterruptedCall, SirenError
from siren_runtime.streaming.handles import Stream, Streams
from siren_runtime.streaming.reader import Between, nothing
from siren_runtime.streaming.result import StreamResult
from siren_runtime.text.deadline import Deadline

_TOGETHER = 32  # streams that are read in one batch
_SHORT = 512  # characters, about a chunk of tokens, that are read in a moment


@dataclass(frozen=True, eq=False)
class Feed:
    """A piece that waits, the text's last or not; `turn` and `since` as `Waiting` has them."""

    stream: Stream
    piece: str
    last: bool
    deadline: Deadline
    future: "Future[StreamResult]"
    turn: int
    since: float


class WaitingFeeds:
    """Pieces by stream. Of each stream one is read at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._of: dict[Stream, deque[Feed]] = {}

    def __len__(self) -> int:
        """Return how many pieces wait."""
        return sum(map(len, self._of.values()))

    def add(self, feed: Feed) -> None:
        """Let a piece wait."""
        self._of.setdefault(feed.stream, deque()).append(feed)

    def first(self) -> Feed | None:
        """The piece whose turn it is; those whose caller has gone are dropped."""
        for stream, feeds in list(self._of.items()):
            kept = deque(feed for feed in feeds if not feed.future.cancelled())
            if kept:
                self._of[stream] = kept
            else:
                del self._of[stream]
        heads = [feeds[0] for feeds in self._of.values()]
        return min(heads, key=lambda feed: feed.turn, default=None)

    def take(self) -> list[Feed]:
        """Take the first piece of each of the streams that have waited longest."""
        return self._taken([feeds[0] for feeds in self._of.values()])

    def take_short(self, reading: Collection[Stream]) -> list[Feed]:
        """Of streams that are not being read, take first pieces that cost no more than a moment."""
        heads = [feeds[0] for stream, feeds in self._of.items() if stream not in reading]
        return self._taken([feed for feed in heads if is_short(feed)])

    def _taken(self, heads: list[Feed]) -> list[Feed]:
        taken = sorted(heads, key=lambda feed: feed.turn)[:_TOGETHER]
        for feed in taken:
            self._of[feed.stream].popleft()
            if not self._of[feed.stream]:
                del self._of[feed.stream]
        return taken

    def clear(self) -> list[Feed]:
        """Forget all, and return them."""
        waiting = [feed for feeds in self._of.values() for feed in feeds]
        self._of.clear()
        return waiting


def is_short(feed: Feed) -> bool:
    """Whether it is read in a moment, or not at all since its time is up."""
    try:
        feed.deadline.check("while it waits")
    except InterruptedCall:
        return True
    return feed.stream.session.brings(feed.piece) <= _SHORT


def read(streams: Streams, feeds: list[Feed], between: Between = nothing) -> None:
    """Read pieces in one batch and answer each; `between` as `Streams.read`."""
    wanted = [feed for feed in feeds if feed.future.set_running_or_notify_cancel()]
    if not wanted:
        return
    try:
        results = streams.read([(f.stream, f.piece, f.deadline, f.last) for f in wanted], between)
    except Exception as error:  # the callers' to see, not this thread's to end of
        for feed in wanted:
            feed.future.set_exception(error)
        return
    for feed, result in zip(wanted, results, strict=True):
        if isinstance(result, SirenError):
            feed.future.set_exception(result)
        else:
            feed.future.set_result(result)
