"""A server in front of a model server: how much later the first token of an answer comes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from siren_bench.records.record import markdown_table
from siren_bench.records.samples import in_turns, p95
from siren_bench.speed.latency import three_digits
from siren_runtime.bundle.progress import Progress, silent
from siren_runtime.errors import SirenError

from .server import free_port, server, wait_until

_NEXT_MS = 5.0
_WARM_UPS = 3
_TIMEOUT_S = 60
Entry = dict[str, Any]


def first_tokens(
    bundle: Path,
    options: Sequence[object],
    prompts: Mapping[int, str],
    first_ms: Sequence[float],
    rounds: int,
    progress: Progress = silent,
) -> list[Entry]:
    """Ask a model server for streamed answers, by itself and behind `siren serve --upstream`.

    The two take turns, one request at a time, over connections that are kept. In every round the
    prompt's score is timed too, as the server itself answers it.

    Args:
        options: of the server.
        prompts: by their lengths in tokens.
        first_ms: what the model server takes to its first token.

    Returns:
        One entry a prompt, time and `order` (when the upstream is asked: beside the prompt's score
        or after it): milliseconds of each round to the first token, `alone_ms` and `guarded_ms`,
        and to the prompt's score, `score_ms`.
    """
    entries: list[Entry] = []
    orders = ("beside", "before")
    with _model_server() as upstream:
        for order in orders:
            given = ["--upstream", f"http://127.0.0.1:{upstream}/v1", "--prompt", order]
            with server(bundle, [*options, *given, "--mode", "log"]) as running:
                alone, guarded = _Asker(upstream), _Asker(running.port)
                for tokens, prompt in prompts.items():
                    for wait in first_ms:
                        done, count = len(entries), len(orders) * len(prompts) * len(first_ms)
                        progress(f"{tokens} tokens, {wait:g} ms", done, count)
                        found: Entry = {"order": order, "tokens": tokens, "first_ms": wait}
                        entries.append(found | _rounds(alone, guarded, prompt, wait, rounds))
    return entries


def _rounds(
    alone: "_Asker", guarded: "_Asker", prompt: str, wait: float, rounds: int
) -> dict[str, list[float]]:
    calls: dict[str, Callable[[], float]] = {
        "alone_ms": lambda: alone.first_token(prompt, wait),
        "guarded_ms": lambda: guarded.first_token(prompt, wait),
        "score_ms": lambda: guarded.score(prompt),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number, turn in in_turns([*calls.items()], rounds, _WARM_UPS):
        for name, call in turn:
            seconds = call()
            if number >= 0:
                found[name].append(1000 * seconds)
    return found


class _Asker:
    """A connection to a server of the loopback that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)

    def first_token(self, prompt: str, wait: float) -> float:
        """Ask for an answer, read it to its end, and say when its first text was there."""
        body = {
            "model": "waits",
            "stream": True,
            "messages": [{"role": "user", "content": prompt}],
            "metadata": {"first_ms": str(wait), "next_ms": str(_NEXT_MS)},
        }
        start, found = time.perf_counter(), None
        for line in self._lines("/v1/chat/completions", body):
            if found is None and b'"content":' in line:
                found = time.perf_counter() - start
        if found is None:
            raise SirenError("an answer had no text")
        return found

    def score(self, prompt: str) -> float:
        """Ask for the score of a prompt, and say when it was there."""
        start = time.perf_counter()
        for _ in self._lines("/v1/score", {"text": prompt}):
            pass
        return time.perf_counter() - start

    def _lines(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        self._connection.request(
            "POST", path, json.dumps(body), {"Content-Type": "application/json"}
        )
        response = self._connection.getresponse()
        if response.status != 200:
            raise SirenError(f"{path} answered {response.status}: {response.read()[:300]!r}")
        yield from iter(response.readline, b"")
        response.read()  # so that the connection takes another request


@contextmanager
def _model_server() -> Iterator[int]:
    """Run the model server; the port is of the loopback."""
    port = free_port()
    module = "siren_bench.serving.model_server"
    process = subprocess.Popen([sys.executable, "-m", module, str(port)])

    def answers() -> bool:
        connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    try:
        wait_until(answers, process, "answer")
        yield port
    finally:
        process.terminate()
        process.wait()


def first_tokens_table(entries: Sequence[Entry]) -> str:
    """Lay out times to the first token: medians, and of differences the 95th percentile too."""
    header = ["upstream is asked", "tokens of the prompt", "upstream's first token, ms",
              "alone, ms", "guarded, ms", "later by, ms", "p95", "the prompt's score, ms",
              "p95"]  # fmt: skip
    rows = []
    for entry in entries:
        pairs = zip(entry["guarded_ms"], entry["alone_ms"], strict=True)
        later = [guarded - alone for guarded, alone in pairs]
        medians = [median(entry[name]) for name in ("alone_ms", "guarded_ms")]
        found = [*medians, median(later), p95(later), median(entry["score_ms"])]
        rows.append(
            [
                f"{entry['order']} the prompt's score"
                if entry["order"] == "beside"
                else "after it",
                str(entry["tokens"]),
                f"{entry['first_ms']:g}",
                *map(three_digits, [*found, p95(entry["score_ms"])]),
            ]
        )
    return markdown_table(header, rows)
