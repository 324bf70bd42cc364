"""The README's first screen: one table and one chart a head, from its recorded results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siren_runtime.errors import InputError

from .cold_start import load_and_score_seconds
from .latency import milliseconds, three_digits
from .record import markdown_table, read_record
from .throughput import best_ratios

START, END = "<!-- siren bench report -->", "<!-- end of siren bench report -->"
_OTHER_BENCHES = ("throughput", "cold-start", "memory")

Record = Mapping[str, Any]


def head_section(head: str, results: Path, relative_to: Path) -> str:
    """Write a head's table, chart and what they come from, as Markdown.

    Args:
        head: As in the names of the files: latency-HEAD.json, and where they are there
            throughput, cold-start and memory, and latency-HEAD+NAME.json with further peers.
        results: The folder of the files.
        relative_to: The folder that links start from.

    Raises:
        InputError: there is no latency-HEAD.json, or a file is not a record.
    """
    records = {"latency": read_record(results / f"latency-{head}.json")}
    paths = {bench: results / f"{bench}-{head}.json" for bench in _OTHER_BENCHES}
    paths |= {p.stem: p for p in sorted(results.glob(f"latency-{head}+*.json"))}
    records |= {name: read_record(path) for name, path in paths.items() if path.exists()}
    latency = records["latency"]
    link = _relative(results, relative_to)
    chart = f"![Latency of {head}]({link}latency-{head}.png)\n\n"
    parts = [
        f"**{latency['settings']['head']}**, {latency['settings']['threads']} threads of "
        f"{latency['machine']['cpu']}; milliseconds a text, medians, and how many times ours.\n",
        comparison_table(records),
        chart if (results / f"latency-{head}.png").exists() else "",
    ]
    missing = {
        k: v for record in records.values() for k, v in record["settings"]["missing"].items()
    }
    if missing:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
        parts.append(f"Not measured: {reasons}.\n\n")
    made_by = "\n".join(record["command"] for record in records.values())
    files = [paths.get(name, results / f"latency-{head}.json").name for name in records]
    names = ", ".join(f"[{name}]({link}{name})" for name in files)
    parts.append(f"Made by these commands, raw samples in {names}:\n```\n{made_by}\n```\n")
    return "\n".join(parts[:2]) + "\n" + "".join(parts[2:])


def comparison_table(records: Mapping[str, Record]) -> str:
    """Lay out a row for each implementation, with its versions, over all benchmarks."""
    versions = {
        engine["name"]: ", ".join(f"{k} {v}" for k, v in engine["versions"].items())
        for record in records.values()
        for engine in record["settings"]["engines"]
    }
    latency = _latency_results(records)
    lengths = list(dict.fromkeys(entry["tokens"] for entry in latency))
    columns = {f"{n} tokens": _latency_cells(latency, n) for n in lengths}
    if "throughput" in records:
        columns["corpus, texts/s"] = _throughput_cells(records["throughput"]["results"])
    if "cold-start" in records:
        columns["load + first score, s"] = {
            e["engine"]: f"{load_and_score_seconds(e):.2f}"
            for e in records["cold-start"]["results"]
        }
    if "memory" in records:
        columns["resident, GB"] = {
            e["engine"]: f"{e['resident_bytes'] / 1e9:.2f}" for e in records["memory"]["results"]
        }
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [
        [
            f"{name}<br><sub>{versions.get(name, '')}</sub>",
            *(column.get(name, "") for column in columns.values()),
        ]
        for name in names
    ]
    return markdown_table(["implementation", *columns], rows)


def insert_report(document: Path, report: str) -> None:
    """Put the report between its two marks in a Markdown file.

    Raises:
        InputError: the file has no such marks.
    """
    text = document.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise InputError(f"{document} has no {START} followed by {END}; put both where it belongs")
    document.write_text(f"{before}{start}\n{report}{end}{after}", encoding="utf-8")


def _latency_results(records: Mapping[str, Record]) -> list[Any]:
    """The entries of every run; of an engine and length in several runs, the first run's.

    A ratio holds within its run, and every run has the same first engine.
    """
    found: dict[tuple[str, int], Any] = {}
    for record in records.values():
        if record["bench"] == "latency":
            for entry in record["results"]:
                found.setdefault((entry["engine"], entry["tokens"]), entry)
    return sorted(found.values(), key=lambda entry: entry["tokens"])


def _latency_cells(results: Any, tokens: int) -> dict[str, str]:
    entries = [entry for entry in results if entry["tokens"] == tokens]
    ours = entries[0]["engine"]
    return {
        e["engine"]: milliseconds(e["median_s"])
        + ("" if e["engine"] == ours else f" ({e['ratio']:.1f}x)")
        for e in entries
    }


def _throughput_cells(results: Any) -> dict[str, str]:
    best: dict[str, float] = {}
    ratios = best_ratios(results)
    for entry in results:
        name = entry["engine"] if entry["engine"] in ratios else entry["engine"].split(",")[0]
        best[name] = max(best.get(name, 0.0), entry["texts_per_s"])
    return {
        name: three_digits(value) + ("" if i == 0 else f" ({ratios[name]:.1f}x)")
        for i, (name, value) in enumerate(best.items())
    }


def _relative(results: Path, folder: Path) -> str:
    try:
        return f"{results.resolve().relative_to(folder.resolve()).as_posix()}/"
    except ValueError:
        return f"{results.resolve().as_posix()}/"
