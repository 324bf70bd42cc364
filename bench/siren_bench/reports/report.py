"""What docs/benchmarks.md and the README say of a head, from its recorded results."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from siren_bench.records.record import markdown_table, processor, read_record
from siren_bench.speed.cold_start import load_and_score_seconds
from siren_bench.speed.latency import milliseconds, three_digits
from siren_bench.speed.throughput import Best, base_name, best_settings
from siren_runtime.bundle.files import write_whole
from siren_runtime.errors import InputError

START, END = "<!-- siren bench report -->", "<!-- end of siren bench report -->"
_OTHER_BENCHES = ("throughput", "cold-start", "memory")
_FEW_SAMPLES = 5  # of which fewer are said beside a figure

# The rows of the small table: an engine each, or the one of several that comes nearest to ours.
_SUMMARY_ROWS = (
    ("siren-edge int8",),
    ("siren-edge int8 with spans",),
    ("siren-edge fp32",),
    ("llm-siren float32",),
    ("llm-siren bfloat16",),
    ("OpenVINO float32", "OpenVINO bfloat16", "OpenVINO int8 weights"),
    ("transformers generate float32, 4 new tokens", "transformers generate float32, 1 new token"),
    ("openvino-genai int4, 1 new token",),
    ("onnxruntime-genai int4, 1 new token", "onnxruntime-genai float32, 1 new token"),
    ("llama.cpp int4, 1 new token",),
)

Record = Mapping[str, Any]
Column = dict[str, str]  # engine to the cell


@dataclass(frozen=True)
class Report:
    """The recorded results of one head.

    Attributes:
        head: As in the names of the files.
        folder: Where the files are.
        records: By file, latency-HEAD.json first.
    """

    head: str
    folder: Path
    records: Mapping[Path, Record]

    @property
    def latency(self) -> Record:
        """The record that every report needs."""
        return next(iter(self.records.values()))

    @property
    def measured_on(self) -> str:
        """The head, the threads and the processor, in words; other files' where they differ."""
        on: dict[str, list[str]] = {}
        for path, record in self.records.items():
            machine = f"{record['settings']['threads']} threads of {processor(record['machine'])}"
            on.setdefault(machine, []).append(path.stem)
        (first, _), *others = on.items()
        notes = [f"; {machine} for {', '.join(files)}" for machine, files in others]
        return f"**{self.latency['settings']['head']}**, {first}{''.join(notes)}"

    def results(self, bench: str) -> list[Any]:
        """The entries of every record of one benchmark, in the order of the files.

        Each has its file's name and the versions of its engine too, as `file` and `versions`.
        """
        return [
            {**entry, "file": path.stem, "versions": _versions(record, entry["engine"])}
            for path, record in self.records.items()
            if record["bench"] == bench
            for entry in record["results"]
        ]


def read_report(head: str, folder: Path) -> Report:
    """Read latency-HEAD.json and what else of the head is recorded.

    That is throughput, cold-start and memory, and latency-HEAD+NAME.json with further peers.

    Raises:
        InputError: there is no latency-HEAD.json, a file is not a record, or ratios in one are to
            another engine than in latency-HEAD.json.
    """
    others = [folder / f"{bench}-{head}.json" for bench in _OTHER_BENCHES]
    others += sorted(folder.glob(f"latency-{head}+*.json"))
    paths = [folder / f"latency-{head}.json", *(path for path in others if path.exists())]
    records = {path: read_record(path) for path in paths}
    for path, record in records.items():
        if record["bench"] in ("latency", "throughput"):
            _check_first_engine(path, record, paths[0], records[paths[0]])
    return Report(head, folder, records)


def _check_first_engine(path: Path, record: Record, first_path: Path, first: Record) -> None:
    """Refuse a record whose ratios are to another engine than those of the first one."""
    found, expected = (one["results"][0]["engine"] for one in (record, first))
    if found != expected:
        raise InputError(
            f"{path}: its ratios are to {found}, those of {first_path} to {expected}; measure it "
            "with the same first of --engines, or give it another name"
        )


def _versions(record: Record, engine: str) -> str:
    """What an engine of a record is made of, in words; of ours with a token budget too."""
    made_of = {one["name"]: one["versions"] for one in record["settings"]["engines"]}
    found = made_of.get(engine) or made_of.get(base_name(engine), {})
    return ", ".join(f"{name} {version}" for name, version in found.items())


def full_section(report: Report, relative_to: Path) -> str:
    """Write the table of every engine, the chart and what they come from, as Markdown.

    Args:
        relative_to: The folder that links start from.
    """
    link = Path(os.path.relpath(report.folder, relative_to)).as_posix()
    files = ", ".join(f"[{path.name}]({link}/{path.name})" for path in report.records)
    made_by = "\n".join(record["command"] for record in report.records.values())
    chart = f"latency-{report.head}.png"
    parts = [
        f"## {report.head}\n",
        f"{report.measured_on}; milliseconds a text, medians, and in brackets how many times "
        f"{report.latency['results'][0]['engine']}'s time, and the samples where they are under "
        f"{_FEW_SAMPLES}.\n",
        comparison_table(report),
    ]
    if (report.folder / chart).exists():
        parts.append(f"![Latency of {report.head}]({link}/{chart})\n")
    missing = {
        name: reason
        for record in report.records.values()
        for name, reason in record["settings"]["missing"].items()
    }
    if missing:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
        parts.append(f"Not measured: {reasons}.\n")
    parts.append(f"Made by these commands, raw samples in {files}:\n\n```\n{made_by}\n```\n")
    return "\n".join(parts)


def summary_section(report: Report, lengths: Sequence[int]) -> str:
    """Write the small table of a README: our engines and a few of the peers, as Markdown.

    Args:
        lengths: Of texts in tokens, a column each.

    Raises:
        InputError: nothing was timed at one of the lengths.
    """
    latency = _latency_results(report)
    measured = sorted({entry["tokens"] for entry in latency})
    for tokens in lengths:
        if tokens not in measured:
            raise InputError(
                f"{report.folder}: no text of {tokens} tokens was timed for {report.head}, only of "
                f"{', '.join(map(str, measured))}"
            )
    columns = {f"{n} tokens, ms": _latency_cells(latency, n) for n in lengths}
    columns |= _start_and_memory(report)
    names = [name for row in _SUMMARY_ROWS if (name := _nearest(latency, row, lengths))]
    rows = [[name, *(column.get(name, "") for column in columns.values())] for name in names]
    note = (
        f"{report.measured_on}; medians, and in brackets how many times {latency[0]['engine']}'s "
        f"time, and the samples where they are under {_FEW_SAMPLES}. Empty: not measured.\n"
    )
    return f"{note}\n{markdown_table(['engine', *columns], rows)}"


def comparison_table(report: Report) -> str:
    """Lay out a row for each engine, with the versions that it was measured with, over all
    benchmarks.
    """
    latency, throughput = _latency_results(report), report.results("throughput")
    lengths = list(dict.fromkeys(entry["tokens"] for entry in latency))
    columns = {f"{n} tokens": _latency_cells(latency, n) for n in lengths}
    best = best_settings(throughput) if throughput else {}
    if throughput:
        columns["corpus, texts/s"] = _throughput_cells(best)
    columns |= _start_and_memory(report)
    shown: dict[str, list[Any]] = {name: [] for column in columns.values() for name in column}
    for entry in (*latency, *report.results("cold-start"), *report.results("memory")):
        shown[entry["engine"]].append(entry)
    for name, found in best.items():
        shown[name].append(found.entry)
    rows = [
        [
            f"{name}<br><sub>{_versions_of(entries)}</sub>",
            *(column.get(name, "") for column in columns.values()),
        ]
        for name, entries in shown.items()
    ]
    return markdown_table(["engine", *columns], rows)


def _versions_of(entries: Sequence[Any]) -> str:
    """The versions that a row's figures are of; where they are several, each with its files."""
    files: dict[str, dict[str, None]] = {}
    for entry in entries:
        files.setdefault(entry["versions"], {})[entry["file"]] = None
    if len(files) == 1:
        return next(iter(files))
    return "; ".join(f"{versions} in {', '.join(of)}" for versions, of in files.items())


def insert_report(document: Path, section: str) -> None:
    """Put a section between the two marks in a Markdown file.

    Raises:
        InputError: the file has no such marks, or cannot be written.
    """
    text = document.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise InputError(f"{document} has no {START} followed by {END}; put both where it belongs")
    write_whole(document, f"{before}{start}\n{section}{end}{after}".encode(), InputError)


def _latency_results(report: Report) -> list[Any]:
    """The entries of every run; of an engine and length in several runs, the first run's.

    A ratio holds within its run, and every run has the same first engine (`read_report`).
    """
    found: dict[tuple[str, int], Any] = {}
    for entry in report.results("latency"):
        found.setdefault((entry["engine"], entry["tokens"]), entry)
    return sorted(found.values(), key=lambda entry: entry["tokens"])


def _nearest(latency: Sequence[Any], names: Sequence[str], lengths: Sequence[int]) -> str | None:
    """Of the engines that were timed at a length, the one of the least mean ratio to ours."""
    ratios = {
        name: [e["ratio"] for e in latency if e["engine"] == name and e["tokens"] in lengths]
        for name in names
    }
    timed = [name for name, found in ratios.items() if found]
    return min(timed, key=lambda name: fmean(ratios[name]), default=None)


def _latency_cells(latency: Sequence[Any], tokens: int) -> Column:
    entries = [entry for entry in latency if entry["tokens"] == tokens]
    ours = entries[0]["engine"]
    return {
        e["engine"]: _cell(
            milliseconds(e["median_s"]),
            "" if e["engine"] == ours else f"{e['ratio']:.1f}x",
            _few(e["samples_s"]),
        )
        for e in entries
    }


def _throughput_cells(best: Mapping[str, Best]) -> Column:
    return {
        name: _cell(
            three_digits(found.entry["texts_per_s"]),
            found.setting,
            "" if i == 0 else f"{found.ratio:.1f}x",
            _few(found.entry["samples_s"]),
        )
        for i, (name, found) in enumerate(best.items())
    }


def _cell(figure: str, *notes: str) -> str:
    """A figure, and in brackets those notes that are not empty."""
    found = ", ".join(filter(None, notes))
    return f"{figure} ({found})" if found else figure


def _few(samples: Sequence[Any]) -> str:
    """How many samples a median is of, where they are few."""
    if len(samples) >= _FEW_SAMPLES:
        return ""
    return "1 sample" if len(samples) == 1 else f"{len(samples)} samples"


def _start_and_memory(report: Report) -> dict[str, Column]:
    """The columns of cold start and of memory after the longest text, where they are recorded."""
    starts, memory = report.results("cold-start"), report.results("memory")
    columns: dict[str, Column] = {}
    if starts:
        columns["load + first score, s"] = {
            e["engine"]: _cell(f"{load_and_score_seconds(e):.2f}", _few(e["samples"]))
            for e in starts
        }
    if memory:
        columns["resident, GB"] = {
            e["engine"]: _cell(
                f"{e['resident_bytes'] / 1e9:.2f}", _few(e["resident_samples_bytes"])
            )
            for e in memory
        }
    return columns
