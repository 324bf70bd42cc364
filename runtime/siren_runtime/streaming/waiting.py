"""What waits of a stream behind exits: how far each segment has read, and the states it left."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from siren_runtime.backends.outputs import FloatArray


class Waiting:
    """The tokens that wait between segments, each with the states that segments behind read.

    Attributes:
        read: how many tokens each segment has read, falling; empty where there are no segments.
    """

    def __init__(self, taken: Sequence[Collection[str]] = ()) -> None:
        """Begin with no token.

        Args:
            taken: the names of the states that each segment takes.
        """
        self.read = [0] * len(taken)
        # Before each segment: of the states that it and those behind it take, a row a token.
        self._rows: list[dict[str, list[FloatArray]]] = [
            {name: [] for later in taken[number:] for name in later} for number in range(len(taken))
        ]

    @property
    def bytes(self) -> int:
        """Memory of the states."""
        lists = [rows for before in self._rows for rows in before.values()]
        return sum(len(rows) * rows[0].nbytes for rows in lists if rows)

    def before(self, number: int) -> int:
        """How many tokens wait for a segment that is not the first."""
        return self.read[number - 1] - self.read[number]

    def states(self, number: int, name: str, count: int) -> FloatArray:
        """A state of the first tokens that wait for a segment, float32 [count, ...]."""
        return np.stack(self._rows[number][name][:count])

    def advance(self, number: int, count: int, states: Mapping[str, FloatArray]) -> None:
        """Note that a segment has read so many tokens more.

        Args:
            states: those that it made of them, float32 [count, ...] by name.
        """
        self.read[number] += count
        for name, rows in self._rows[number].items():
            if number + 1 < len(self.read) and name in self._rows[number + 1]:
                self._rows[number + 1][name] += rows[:count]
            del rows[:count]
        for name, made in states.items():
            self._rows[number + 1][name] += list(made.copy())

    def cut(self, tokens: int) -> None:
        """Forget all but the first tokens of the stream."""
        before = [*self.read]
        self.read = [min(read, tokens) for read in before]
        for number, rows in enumerate(self._rows[1:], 1):
            for kept in rows.values():
                del kept[max(self.before(number), 0) :]
