"""Callers that ask a server for scores while it reloads, ends or loses a worker."""

import math
import threading
import time
from pathlib import Path

import httpx

SECRET = "a text that no log may hold"


class Load:
    """Callers that ask until they are told to stop, each over a connection of its own."""

    def __init__(self, url: str, scores: list[float], callers: int = 6) -> None:
        self._url, self._scores = url, scores
        self._stop = threading.Event()
        self.answers = 0
        self.may_fail_from = math.inf  # requests that begin later may find nobody
        self.wrong: list[object] = []
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stop.is_set():
                begun = time.monotonic()
                try:
                    answer = client.post(f"{self._url}/v1/score", json={"text": SECRET})
                except httpx.HTTPError as error:
                    if begun < self.may_fail_from:
                        self.wrong.append(error)
                    return
                score = answer.json().get("score")
                if score is None or min(abs(score - right) for right in self._scores) > 1e-6:
                    self.wrong.append(answer.text)
                self.answers += 1

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def point(link: Path, target: Path) -> None:
    """Let a symbolic link lead elsewhere."""
    link.unlink()
    link.symlink_to(target)
