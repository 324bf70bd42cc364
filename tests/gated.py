"""A guard whose engine waits until a test lets it run, so that what waits is known."""

import threading
from collections.abc import Mapping
from typing import Any

from siren_runtime import Guard
from siren_runtime.scoring.scorer import Scorer

WAIT_S = 30


class Gate:
    """A real scorer; its runs wait while the gate is closed, and are written down.

    Attributes:
        runs: of each engine run that was begun, the lengths of its texts in tokens.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._open = threading.Event()
        self._begun = threading.Semaphore(0)
        self.runs: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def run(self, encoded: Mapping[Any, Any], *arguments: Any) -> Any:
        self.runs.append([len(window.ids) for window in encoded.values()])
        self._begun.release()
        assert self._open.wait(WAIT_S)
        return self._scorer.run(encoded, *arguments)

    def wait_for_run(self) -> None:
        """Wait until an engine run begins that was not waited for yet."""
        assert self._begun.acquire(timeout=WAIT_S)

    def open(self) -> None:
        self._open.set()


def gated(guard: Guard) -> tuple[Guard, Gate]:
    """The guard, over its first scorer behind a gate."""
    gate = Gate(guard.scorers[0])
    return Guard([gate, *guard.scorers[1:]], limits=guard.judge.limits), gate  # type: ignore[list-item]
