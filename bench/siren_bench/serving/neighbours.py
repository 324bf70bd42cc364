"""A server that hostile clients ask too: what those notice who ask as they should."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from siren_bench.engines.process import one_process
from siren_bench.records.record import markdown_table
from siren_bench.speed.latency import three_digits
from siren_runtime.bundle.progress import Progress, silent

from .hostile import KINDS, attack
from .load import SCORED, Answer, Load, percentiles, summary, wrong
from .server import Server
from .subjects import OverHttp, SubjectProcess, usage

_BEFORE_S = 1.0  # that hostile clients are at it before neighbours are measured
Entry = dict[str, Any]


@dataclass
class _Measured:
    """One kind, over all rounds."""

    alone: list[Answer] = field(default_factory=list)
    beside: list[Answer] = field(default_factory=list)
    rounds: list[Entry] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    processor_s: float = 0.0
    resident: int = 0


def neighbours(
    running: Server,
    kinds: Sequence[str],
    texts: list[str],
    expected: Sequence[float],
    callers: int,
    share: float,
    seconds: float,
    rounds: int,
    progress: Progress = silent,
) -> tuple[list[Entry], float]:
    """Ask alone and beside hostile clients of each kind, one after the other in every round.

    Hostile clients are one process, neighbours another. Both loads of a round ask for the same
    texts at the same times, the one first in one round and the other in the next.

    Args:
        kinds: of `hostile.KINDS`.
        expected: the guard's own score of each text.
        callers: how many ask at once while the capacity is found.
        share: of the capacity that neighbours ask for, as an open loop.

    Returns:
        One entry a `kind`: `alone` and `beside` with percentiles over all rounds together and
        counts of `unscored` and `wrong` texts, the same of each of the `rounds`; how what was
        `hostile` ended; `hostile_cores`, which that took by itself; the server's `resident_bytes`
        behind it. And the capacity, in texts a second.
    """
    found = {name: _Measured() for name in kinds}
    with SubjectProcess(OverHttp(running.port)) as asking, one_process() as hostile:
        load = Load(time.monotonic(), max(1.0, seconds / 2), callers)
        capacity = summary(asking.answers(texts, load), load)["texts_per_s"]

        def ask(seed: int) -> list[Answer]:
            load = Load(time.monotonic(), seconds, rate=share * capacity, seed=seed)
            return asking.answers(texts, load)

        def ask_beside(seed: int, name: str, measured: _Measured) -> list[Answer]:
            attacking = hostile.submit(attack, running.port, name, _BEFORE_S + seconds)
            time.sleep(_BEFORE_S)
            answers = ask(seed)
            ends, processor_s = attacking.result()
            measured.ends += ends
            measured.processor_s += processor_s
            measured.resident = usage(running.process.pid)[1]
            return answers

        for number in range(rounds):
            for place, (name, measured) in enumerate(found.items()):
                progress(KINDS[name].what, number * len(found) + place, rounds * len(found))
                if number % 2 == 0:
                    alone, beside = ask(number), ask_beside(number, name, measured)
                else:
                    beside, alone = ask_beside(number, name, measured), ask(number)
                measured.alone += alone
                measured.beside += beside
                measured.rounds.append(
                    {"alone": _told(alone, expected), "beside": _told(beside, expected)}
                )
    length = rounds * (_BEFORE_S + seconds)
    return [_entry(name, one, expected, length) for name, one in found.items()], capacity


def _told(answers: Sequence[Answer], expected: Sequence[float]) -> Entry:
    scored = [answer for answer in answers if answer.status == SCORED]
    return {
        **percentiles(scored),
        "scored": len(scored),
        "unscored": len(answers) - len(scored),
        "wrong": wrong(answers, expected),
    }


def _entry(name: str, one: _Measured, expected: Sequence[float], seconds: float) -> Entry:
    return {
        "kind": name,
        "alone": _told(one.alone, expected),
        "beside": _told(one.beside, expected),
        "hostile": dict(one.ends),
        "hostile_cores": one.processor_s / seconds,
        "resident_bytes": one.resident,
        "rounds": one.rounds,
    }


def neighbours_table(entries: Sequence[Entry]) -> str:
    """Lay out what neighbours noticed of each kind, and what the server did with it."""
    header = ["beside", "how it ended", "p50, ms", "p50 alone", "p99, ms", "p99 alone", "p99 ratio",
              "unscored", "wrong", "MB", "cores that it took"]  # fmt: skip
    rows = []
    for entry in entries:
        alone, beside = entry["alone"], entry["beside"]
        ends = sorted(entry["hostile"].items(), key=lambda end: -end[1])
        times = [three_digits(e[p]) for p in ("p50_ms", "p99_ms") for e in (beside, alone)]
        rows.append(
            [
                KINDS[entry["kind"]].what,
                ", ".join(f"{count:,} {end}" for end, count in ends),
                *times,
                f"{beside['p99_ms'] / alone['p99_ms']:.2f}x",
                f"{beside['unscored']:,}",
                f"{beside['wrong']:,}",
                f"{entry['resident_bytes'] / 1e6:.0f}",
                f"{entry['hostile_cores']:.2f}",
            ]
        )
    return markdown_table(header, rows)
