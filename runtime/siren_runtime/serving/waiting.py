"""Windows that wait for an engine run, and which of them share the next one."""

from bisect import insort
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from siren_runtime.backends.batching import micro_batches
from siren_runtime.scoring.scorer import WindowKey
from siren_runtime.text.reading import Window

from .pending import PendingCall

_CONSIDERED = 256  # windows that the next batch is chosen from
_LOOK_S = 0.05  # after which it is seen again which of those that wait have ended


@dataclass(frozen=True, eq=False)
class Waiting:
    """A window that waits.

    Attributes:
        turn: its place in the queue, in tokens: a window waits as if the tokens before it in its
            call had been those of other calls, so that a long text or list does not hold up what
            comes after it.
        since: seconds of the monotonic clock.
    """

    call: PendingCall
    member: int
    key: WindowKey
    window: Window
    turn: int
    since: float

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.window.ids)


class WaitingWindows:
    """A queue in order of turns. Its owner sees to it that one thread at a time uses it."""

    def __init__(self) -> None:
        self._windows: list[Waiting] = []
        self._looked = 0.0
        self.tokens = 0

    def __len__(self) -> int:
        """Return how many windows wait."""
        return len(self._windows)

    def add(self, call: PendingCall, turn: int, now: float) -> int:
        """Let all windows of a call wait, the first at `turn`.

        Returns:
            The turn of the next call: behind this one's first window.
        """
        following = turn
        for member, windows in enumerate(call.windows):
            place = turn
            for key, window in windows.items():
                waiting = Waiting(call, member, key, window, place, now)
                insort(self._windows, waiting, key=lambda other: other.turn)
                place += waiting.length
                if waiting.turn == turn:
                    following = max(following, place)
        self.tokens += call.tokens
        return following

    def first(self, now: float) -> Waiting | None:
        """The window whose turn it is; those of calls that have ended are dropped.

        To look at all of them takes longer than to choose a batch, so it is done now and then.
        """
        if now >= self._looked + _LOOK_S:
            self._looked = now
            self._drop({call for call in self.calls() if call.has_ended()})
        while self._windows and self._windows[0].call.has_ended():
            self._drop({self._windows[0].call})
        return self._windows[0] if self._windows else None

    def take(self, token_budgets: Sequence[int]) -> list[Waiting]:
        """Take the first window and those that fill its batch best: of similar length, of the same
        member. Those of calls that have ended are dropped; none is left then, maybe.

        Args:
            token_budgets: of each member, tokens that a batch holds, padding included.
        """
        while self._windows:
            taken = self._next_batch(token_budgets)
            ended = {waiting.call for waiting in taken if waiting.call.has_ended()}
            if not ended:
                chosen = set(taken)
                self._keep([waiting for waiting in self._windows if waiting not in chosen])
                return taken
            self._drop(ended)
        return []

    def _next_batch(self, token_budgets: Sequence[int]) -> list[Waiting]:
        member = self._windows[0].member
        near = [w for w in self._windows[:_CONSIDERED] if w.member == member]
        lengths = [waiting.length for waiting in near]
        batches = micro_batches(lengths, token_budgets[member])
        return [near[index] for index in next(batch for batch in batches if 0 in batch)]

    def counted(self, most: int) -> int:
        """The tokens that wait, of each call so many at most."""
        by_call = Counter[PendingCall]()
        for waiting in self._windows:
            by_call[waiting.call] += waiting.length
        return sum(min(tokens, most) for tokens in by_call.values())

    def calls(self) -> list[PendingCall]:
        """The calls that wait, each once."""
        return list(dict.fromkeys(waiting.call for waiting in self._windows))

    def clear(self) -> None:
        """Forget all."""
        self._keep([])

    def _drop(self, calls: Set[PendingCall]) -> None:
        if calls:
            self._keep([waiting for waiting in self._windows if waiting.call not in calls])

    def _keep(self, windows: list[Waiting]) -> None:
        if len(windows) != len(self._windows):
            self._windows = windows
            self.tokens = sum(waiting.length for waiting in windows)
