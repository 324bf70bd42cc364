"""Subjects side by side, under the same loads."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from siren_bench.records.record import markdown_table
from siren_bench.records.samples import in_turns, paired_ratio
from siren_bench.speed.latency import three_digits
from siren_runtime.bundle.progress import Progress, silent

from .load import Load, summary
from .subjects import Subject, SubjectProcess, usage

_WARM_UP_S = 1.0
_LEAD_S = 0.1  # for a load to reach the process that puts it
Entry = dict[str, Any]


def compare(
    subjects: Mapping[str, Subject],
    servers: Mapping[str, int],
    texts: list[str],
    callers: Sequence[int],
    rates: Sequence[float],
    seconds: float,
    rounds: int,
    progress: Progress = silent,
) -> tuple[list[Entry], float]:
    """Put loads on subjects, each after the other in every round.

    Args:
        subjects: by name. The first is what the others' throughput is divided by, the last is
            what the capacity is taken of.
        servers: the process that does the work, of those whose own only asks.
        callers: how many ask at once in closed loops.
        rates: of open loops, as multiples of the capacity.

    Returns:
        One entry a subject and load, with a summary of each round; and the capacity in texts a
        second: what the last subject scored while it warmed up, for the most callers.
    """
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(SubjectProcess(subject)) for name, subject in subjects.items()
        }
        pids = {name: servers.get(name, process.pid) for name, process in opened.items()}
        for process in opened.values():
            for length in (_WARM_UP_S, max(_WARM_UP_S, seconds / 2)):
                load = Load(time.monotonic() + _LEAD_S, length, max(callers))
                capacity = summary(process.answers(texts, load), load)["texts_per_s"]
        kinds: list[tuple[str, dict[str, Any]]] = [
            *((f"{n} caller{'s' * (n > 1)}", {"callers": n}) for n in callers),
            *((f"open, {share:g} x capacity", {"rate": share * capacity}) for share in rates),
        ]
        entries: dict[tuple[str, str], Entry] = {
            (name, kind): {"subject": name, "load": kind, **given, "rounds": []}
            for kind, given in kinds
            for name in opened
        }
        done = 0
        for number, turn in in_turns([*entries], rounds, warm_ups=0):
            for name, kind in turn:
                progress(f"{name}, {kind}", done, rounds * len(entries))
                given = dict(kinds)[kind]
                load = Load(time.monotonic() + _LEAD_S, seconds, seed=1000 * number, **given)
                entries[name, kind]["rounds"].append(_one(opened[name], pids[name], texts, load))
                done += 1
    return [*entries.values()], capacity


def _one(process: SubjectProcess, pid: int, texts: list[str], load: Load) -> Entry:
    before, _ = usage(pid)
    found = summary(answers := process.answers(texts, load), load)
    after, resident = usage(pid)
    return {
        **found,
        "processor_ms_per_text": 1000 * (after - before) / max(1, len(answers)),
        "resident_bytes": resident,
    }


def compare_table(results: Sequence[Entry]) -> str:
    """Lay out throughput and latencies, medians over rounds, by load."""
    header = ["", "load", "texts/s", "times the first", "p50, ms", "p95, ms", "p99, ms",
              "refused", "refused p99, ms", "CPU ms a request", "MB"]  # fmt: skip
    rows = []
    for entry in results:
        first = next(e for e in results if e["load"] == entry["load"])
        ratio = paired_ratio(_of(entry, "texts_per_s"), _of(first, "texts_per_s"))
        refused = [
            sum(n for status, n in found["statuses"].items() if status in ("429", "503"))
            / sum(found["statuses"].values())
            for found in entry["rounds"]
        ]
        rows.append(
            [
                entry["subject"],
                entry["load"],
                _middle(entry, "texts_per_s"),
                f"{ratio:.2f}x",
                *(_middle(entry, f"p{p}_ms") for p in (50, 95, 99)),
                f"{100 * median(refused):.0f} %" if any(refused) else "",
                _middle(entry, "refused_p99_ms"),
                _middle(entry, "processor_ms_per_text"),
                f"{median(_of(entry, 'resident_bytes')) / 1e6:.0f}",
            ]
        )
    return markdown_table(header, rows)


def _of(entry: Entry, name: str) -> list[float]:
    return [found[name] for found in entry["rounds"] if name in found]


def _middle(entry: Entry, name: str) -> str:
    found = _of(entry, name)
    return three_digits(median(found)) if found else ""
