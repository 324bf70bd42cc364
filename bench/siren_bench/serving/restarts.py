"""Servers that reload, end or lose a worker under load: is a request lost, is a verdict wrong."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from siren_bench.records.record import markdown_table
from siren_runtime.bundle.progress import Progress, silent

from .load import LOST, NOT_CONNECTED, SCORED, Answer, Load, wrong
from .server import Server, server, wait_until
from .subjects import OverHttp, SubjectProcess

_BEFORE_S = 1.0  # of load before a signal
_DRAIN_S = 1.0  # from SIGTERM to the end of listening
_QUEUED_S = 0.1  # that a connection may wait in the system's queue before a busy server accepts it
_FIND_WORKERS = 40  # requests that are enough to meet both


def _reload(running: Server) -> float:
    """Send SIGHUP, and wait for a guard that was loaded later."""
    before = _loaded(running)
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: _loaded(running) != before, running.process, "reload")
    return float("inf")


def _end(running: Server) -> float:
    """Send SIGTERM; what is sent until the drain is over is accepted."""
    accepted = time.monotonic() + _DRAIN_S - _QUEUED_S
    running.process.send_signal(signal.SIGTERM)
    return accepted


def _kill(running: Server) -> float:
    """Kill one of two workers, and wait for another in its place."""
    killed = next(iter(_workers(running)))
    os.kill(killed, signal.SIGKILL)
    wait_until(
        lambda: killed not in (found := _workers(running)) and len(found) == 2,
        running.process,
        "start a worker in the place of the killed one",
    )
    return float("inf")


# What is done, its options of siren serve, and how. Each returns until when a request that is sent
# counts as accepted.
_SIGNALS: dict[str, tuple[Sequence[object], Callable[[Server], float]]] = {
    "SIGHUP: reload": ([], _reload),
    "SIGTERM: end": (["--drain", _DRAIN_S], _end),
    "SIGKILL of one of two workers": (["--workers", 2], _kill),
}


def restarts(
    bundle: Path,
    texts: list[str],
    expected: Sequence[float],
    callers: int,
    seconds: float,
    rounds: int,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Start servers, put a load on them, and send each a signal.

    A server that ends tells of it by /health/ready, and takes requests for as long as `--drain`
    says: those count as accepted. What was sent in its last tenth of a second may be in the
    system's queue still, and is reset with it. Of a killed worker, what it was reading is lost.

    Args:
        expected: the guard's own score of each text.
        seconds: of load from the signal on.

    Returns:
        One entry a round and signal: requests `scored`, and `scored_later`, after the signal;
        those that were accepted and `lost`; those sent after the end whose connection was cut
        (`cut_later`; others found nobody); `refused` ones; `wrong` scores; `seconds` until it was
        done.
    """
    entries: list[dict[str, Any]] = []
    for number in range(rounds):
        for what, (options, act) in _SIGNALS.items():
            progress(what, len(entries), rounds * len(_SIGNALS))
            with (
                server(bundle, options) as running,
                SubjectProcess(OverHttp(running.port)) as process,
            ):
                load = Load(time.monotonic(), _BEFORE_S + seconds, callers, seed=number * callers)
                asking = process.begin(texts, load)
                time.sleep(_BEFORE_S)
                at = time.monotonic()
                accepted = act(running)
                done = time.monotonic()
                answers = asking.result()
            entries.append(
                {"round": number, "signal": what, "seconds": done - at,
                 **_counts(answers, at, accepted), "wrong": wrong(answers, expected)}
            )  # fmt: skip
    return entries


def _counts(answers: Sequence[Answer], at: float, accepted: float) -> dict[str, int]:
    scored = [answer for answer in answers if answer.status == SCORED]
    cut = [answer for answer in answers if answer.status == LOST]
    nobody = [answer for answer in answers if answer.status == NOT_CONNECTED]
    return {
        "scored": len(scored),
        "scored_later": sum(answer.due > at for answer in scored),
        "lost": sum(answer.due < accepted for answer in (*cut, *nobody)),
        "cut_later": sum(answer.due >= accepted for answer in cut),
        "refused": len(answers) - len(scored) - len(cut) - len(nobody),
    }


def _loaded(running: Server) -> list[float]:
    return [guard["loaded"] for guard in running.info()["guards"].values()]


def _workers(running: Server) -> set[int]:
    """The processes that answer; asked often enough, all of them."""
    found = set()
    for _ in range(_FIND_WORKERS):
        try:
            found.add(running.info()["process"])
        except (OSError, HTTPException):  # noqa: PERF203 - the killed one had taken it
            continue
    return found


def restarts_table(entries: Sequence[dict[str, Any]]) -> str:
    """Lay out what became of requests, summed over rounds."""
    header = ["", "rounds", "scored", "of these, after the signal", "accepted and lost",
              "cut off after the end", "refused", "wrong scores"]  # fmt: skip
    names = ("scored", "scored_later", "lost", "cut_later", "refused", "wrong")
    rows = []
    for what in dict.fromkeys(entry["signal"] for entry in entries):
        found = [entry for entry in entries if entry["signal"] == what]
        sums = [f"{sum(entry[name] for entry in found):,}" for name in names]
        rows.append([what, str(len(found)), *sums])
    return markdown_table(header, rows)
