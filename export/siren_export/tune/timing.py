"""What every timing of engines side by side needs."""

import time
from collections.abc import Sequence

import numpy as np

from siren_runtime import Guard
from siren_runtime.bundle.progress import Progress

# ONNX Runtime's threads spin for about 50 ms after their work, and so slow down whoever comes next.
_SECONDS = 0.1
_ROUNDS = 3


def settle() -> None:
    """Wait until the threads of the engine that ran last are asleep."""
    time.sleep(_SECONDS)


def time_in_turns(guards: Sequence[Guard], texts: Sequence[str], progress: Progress) -> list[float]:
    """Time all texts on each guard in turn, the guards' order turned round every round.

    Returns:
        Milliseconds of each guard: the mean over texts of the median over rounds.
    """
    seconds = np.empty((len(guards), _ROUNDS, len(texts)))
    for guard in guards:
        guard.score(texts[-1])
    for turn in range(_ROUNDS):
        order = range(len(guards))
        for done, row in enumerate(order if turn % 2 == 0 else reversed(order), 1):
            settle()
            for column, text in enumerate(texts):
                start = time.perf_counter()
                guards[row].score(text)
                seconds[row, turn, column] = time.perf_counter() - start
            progress("time", turn * len(guards) + done, _ROUNDS * len(guards))
    return [1e3 * float(medians.mean()) for medians in np.median(seconds, axis=1)]
