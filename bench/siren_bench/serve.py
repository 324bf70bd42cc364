"""Callers that ask at once: a thread pool over a guard, a shared guard, and a server."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import msgspec
import psutil

from siren_runtime import BusyError, Guard, SharedGuard, Sharing
from siren_runtime.errors import SirenError

from .latency import three_digits
from .record import markdown_table
from .samples import paired_ratio

Score = Callable[[str], bool]  # whether it was scored, and not refused
_START_S = 120


@contextmanager
def thread_pool(bundle: Path, threads: int | None) -> Iterator[Callable[[], Score]]:
    """Callers share a plain guard."""
    with Guard.load(bundle, threads=threads) as guard:

        def score(text: str) -> bool:
            return 0 <= guard.score(text).score <= 1

        yield lambda: score


@contextmanager
def shared_guard(bundle: Path, threads: int, runs: int) -> Iterator[Callable[[], Score]]:
    """Callers share a guard whose queue has one owner."""
    with (
        Guard.load(bundle, threads=threads) as guard,
        SharedGuard(guard, Sharing(runs=runs)) as shared,
    ):

        def score(text: str) -> bool:
            try:
                return 0 <= shared.score(text).score <= 1
            except BusyError:
                return False

        yield lambda: score


@contextmanager
def server(bundle: Path, threads: int, runs: int) -> Iterator[Callable[[], Score]]:
    """Callers ask `siren serve`, a process of its own, each over its own connection.

    Raises:
        SirenError: it does not become ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from siren_serve.commands.serve import app; app()"
    arguments = ["--port", str(port), "--threads", str(threads), "--runs", str(runs)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(bundle), *arguments, "--log-level", "warning"]
    )
    try:
        _wait_until_ready(process, port)
        yield lambda: _connected(port)
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:  # noqa: PERF203 - nobody listens yet
            time.sleep(0.05)
    raise SirenError("siren serve did not become ready; run it by hand to see why")


def _connected(port: int) -> Score:
    connection = HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def score(text: str) -> bool:
        connection.request("POST", "/v1/score", msgspec.json.encode({"text": text}))
        response = connection.getresponse()
        body = response.read()
        if response.status == 429:
            return False
        if response.status != 200:
            raise SirenError(f"siren serve answered {response.status}: {body.decode()}")
        return True

    return score


def measure(
    subjects: Mapping[str, AbstractContextManager[Callable[[], Score]]],
    texts: Sequence[str],
    callers: Sequence[int],
    seconds: float,
    rounds: int,
) -> list[dict[str, Any]]:
    """Let so many callers ask for so long, each subject after the other in every round.

    Args:
        subjects: what is asked, by name; all are loaded before the first round.
        callers: how many ask at once; each asks again when it is answered.

    Returns:
        One entry a subject and number of callers, with texts a second, percentiles of the
        latency and processor time of each round.
    """
    opened = {name: subject.__enter__() for name, subject in subjects.items()}
    entries: dict[tuple[str, int], dict[str, Any]] = {
        (name, count): {"subject": name, "callers": count, "rounds": []}
        for count in callers
        for name in subjects
    }
    try:
        for number in range(-1, rounds):  # the first round warms up
            order = list(entries)
            for name, count in order if number % 2 == 0 else reversed(order):
                found = _load(opened[name], texts, count, seconds if number >= 0 else 0.5)
                if number >= 0:
                    entries[name, count]["rounds"].append(found)
    finally:
        for subject in subjects.values():
            subject.__exit__(None, None, None)
    return [*entries.values()]


def _load(
    connect: Callable[[], Score], texts: Sequence[str], callers: int, seconds: float
) -> dict[str, Any]:
    latencies: list[float] = []
    refused = [0]
    end = time.monotonic() + seconds

    def call(number: int) -> None:
        score, chosen, mine = connect(), random.Random(number), []
        while time.monotonic() < end:
            start = time.perf_counter()
            if score(chosen.choice(texts)):
                mine.append(time.perf_counter() - start)
            else:
                refused[0] += 1
        latencies.extend(mine)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    start, busy = time.monotonic(), _processor_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - start
    hundredths = quantiles(latencies, n=100, method="inclusive")
    return {
        "texts_per_s": len(latencies) / elapsed,
        "p50_ms": 1000 * hundredths[49],
        "p99_ms": 1000 * hundredths[98],
        "refused": refused[0],
        "processor_ms_per_text": 1000 * (_processor_time() - busy) / len(latencies),
    }


def _processor_time() -> float:
    """Seconds of this process and its children."""
    found = 0.0
    for process in (psutil.Process(os.getpid()), *psutil.Process(os.getpid()).children()):
        times = process.cpu_times()
        found += times.user + times.system
    return found


def serve_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out throughput and latencies, medians over rounds; the first subject is the peer."""
    header = ["", "callers", "texts/s", "times the first", "p50, ms", "p99, ms", "CPU ms a text"]
    rows = []
    for entry in results:
        first = next(e for e in results if e["callers"] == entry["callers"])

        def of(name: str, entry: Mapping[str, Any] = entry) -> list[float]:
            return [found[name] for found in entry["rounds"]]

        ratio = paired_ratio(of("texts_per_s"), of("texts_per_s", first))
        figures = [
            three_digits(median(of(name))) for name in ("p50_ms", "p99_ms", "processor_ms_per_text")
        ]
        speed = three_digits(median(of("texts_per_s")))
        rows.append([entry["subject"], str(entry["callers"]), speed, f"{ratio:.2f}x", *figures])
    return markdown_table(header, rows)
