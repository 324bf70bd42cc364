"""Which windows share the next engine run."""

from dataclasses import dataclass
from itertools import count
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from siren_runtime.serving.pending import PendingCall
from siren_runtime.serving.waiting import WaitingWindows
from siren_runtime.text.reading import Window


@dataclass(eq=False)
class Call:
    """As much of a pending call as the queue looks at."""

    windows: list[dict[Any, Window]]
    ended: bool = False

    @property
    def tokens(self) -> int:
        return sum(len(w.ids) for windows in self.windows for w in windows.values())

    def has_ended(self) -> bool:
        return self.ended


calls = st.lists(
    st.lists(st.lists(st.integers(1, 60), max_size=5), min_size=2, max_size=2), max_size=12
)


@given(calls, st.integers(1, 200), st.sampled_from([0.0, 0.02, 1.0]), st.data())
def test_every_window_is_taken_once_in_turn_and_within_the_budget(
    lengths: list[list[list[int]]], budget: int, pace: float, data: st.DataObject
) -> None:
    queue = WaitingWindows()
    pending = [
        Call([{(0, n): Window([0] * length) for n, length in enumerate(member)} for member in call])
        for call in lengths
    ]
    turn = 0
    for call in pending:
        turn = queue.add(cast("PendingCall", call), turn, 0.0)
    ended = data.draw(st.sets(st.sampled_from(range(len(pending))))) if pending else set()
    for place in ended:
        pending[place].ended = True
    taken = []
    clock = count(0.0, pace)  # by which all that wait are looked at never, now and then, or always
    while (first := queue.first(next(clock))) is not None:
        batch = queue.take([budget, budget])
        assert first in batch
        assert len({window.member for window in batch}) == 1
        longest = max(window.length for window in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert all(window.turn >= first.turn for window in batch)
        taken += batch
    assert queue.tokens == len(queue) == 0
    expected = sum(len(w) for n, c in enumerate(pending) if n not in ended for w in c.windows)
    assert len(taken) == len(set(taken)) == expected


def test_short_calls_get_as_many_tokens_as_a_long_one_that_came_before() -> None:
    queue = WaitingWindows()
    long = Call([{(0, n): Window([0] * 500) for n in range(20)}])
    turn = queue.add(cast("PendingCall", long), 0, 0.0)
    short = [Call([{(0, 0): Window([0] * 50)}]) for _ in range(40)]
    for call in short:
        turn = queue.add(cast("PendingCall", call), turn, 0.0)
    order = []
    while queue.first(0.0) is not None:
        order += [window.length for window in queue.take([50])]
    behind = order.index(50)
    assert behind <= 2
    assert order[behind : behind + 43].count(50) >= 36
    assert order[-15:] == [500] * 15
