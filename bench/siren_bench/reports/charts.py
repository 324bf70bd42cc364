"""Charts of results, one PNG a benchmark, drawn from what is recorded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from siren_bench.speed.scaling import AXES
from siren_bench.speed.throughput import best_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

# One colour a family of engines; within a family, markers and line styles differ.
_FAMILIES = {
    "torch.compile": "#8c6d1f",
    "siren-edge": "#0b63c4",
    "llm-siren": "#d9730d",
    "OpenVINO": "#2e8b57",
    "transformers": "#b3261e",
    "Optimum": "#7b4fb0",
}
_OTHER = "#555555"
_SUBJECT_COLOURS = ("#555555", "#999999", "#7fb2e8", "#0b63c4", "#d9730d")
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", ":", "-.")


def draw_chart(record: Record, path: Path) -> Path | None:
    """Draw the chart of a record to `path`, a PNG.

    Returns:
        The path; None where there is nothing to draw or matplotlib is not installed.
    """
    draw = _CHARTS.get(record["bench"])
    try:
        import matplotlib
    except ImportError:
        return None
    if draw is None or not record["results"]:
        return None
    matplotlib.use("Agg")
    figure = draw(record)
    if figure is None:
        return None
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    matplotlib.pyplot.close(figure)
    return path


def _latency(record: Record) -> "Figure":
    figure, (axes,) = _figure(9, 5.2)
    results = record["results"]
    for name, style in _styles(_names(results)).items():
        entries = [entry for entry in results if entry["engine"] == name]
        values = [entry["tokens"] for entry in entries]
        axes.plot(values, [1e3 * entry["median_s"] for entry in entries], label=name, **style)
    _logarithmic(axes, sorted({entry["tokens"] for entry in results}))
    axes.set(xlabel="tokens of one text", ylabel="median milliseconds")
    _finish(axes, record, "Latency of one text")
    return figure


def _throughput(record: Record) -> "Figure":
    best = {
        f"{name}, {found.setting}": found.entry["texts_per_s"]
        for name, found in best_settings(record["results"]).items()
    }
    return _bars(record, best, "texts a second, best setting", "Throughput over a corpus")


def _memory(record: Record) -> "Figure":
    longest = {e["engine"]: e["resident_bytes"] / 1e9 for e in record["results"]}
    return _bars(record, longest, "GB resident after the longest text", "Memory")


def _cold_start(record: Record) -> "Figure":
    seconds = {e["engine"]: e["start_to_score_s"] for e in record["results"]}
    return _bars(record, seconds, "seconds from process start to the first score", "Cold start")


def _scaling(record: Record) -> "Figure":
    results = record["results"]
    found = [axis for axis in AXES if len({e["value"] for e in results if e["axis"] == axis}) > 1]
    figure, grid = _figure(4.2 * max(len(found), 1), 4.2, columns=max(len(found), 1))
    exponents = {
        (fit["axis"], fit["engine"]): fit["exponent"] for fit in record["settings"]["fits"]
    }
    for axes, axis in zip(grid, found, strict=False):
        for name, style in _styles(_names(results)).items():
            entries = [e for e in results if (e["axis"], e["engine"]) == (axis, name)]
            if (axis, name) in exponents:
                label = f"{name}: exponent {exponents[axis, name]:.2f}"
                values = [entry["value"] for entry in entries]
                times = [1e3 * entry["median_s"] for entry in entries]
                axes.plot(values, times, label=label, **style)
        _logarithmic(axes, sorted({e["value"] for e in results if e["axis"] == axis}))
        axes.set(xlabel=AXES[axis], ylabel="median milliseconds")
        axes.legend(
            loc="upper left", bbox_to_anchor=(0, -0.16), fontsize=8, frameon=False, handlelength=3.5
        )
    heads = ", ".join(record["settings"]["heads"].values())
    figure.suptitle(f"Cost against size: {heads}\n{record['machine']['cpu']}")
    figure.tight_layout()
    return figure


def _fidelity(record: Record) -> "Figure | None":
    reference, *others = record["results"]
    if not others:
        return None
    figure, (axes,) = _figure(8, 4.5)
    for name, style in _styles([entry["engine"] for entry in others]).items():
        scores = next(entry["scores"] for entry in others if entry["engine"] == name)
        pairs = zip(scores, reference["scores"], strict=True)
        differences = sorted(max(abs(a - b), 1e-8) for a, b in pairs)
        shares = [(i + 1) / len(differences) for i in range(len(differences))]
        axes.plot(differences, shares, label=name, **{**style, "marker": ""})
    axes.set_xscale("log")
    axes.set(xlabel=f"difference in score from {reference['engine']}", ylabel="share of texts")
    _finish(axes, record, "Fidelity")
    return figure


def _serve(record: Record) -> "Figure":
    results = record["results"]
    loads, subjects = (list(dict.fromkeys(e[key] for e in results)) for key in ("load", "subject"))
    figure, grid = _figure(13, 1.2 + 0.22 * len(results), columns=2)
    for axes, key, label in zip(
        grid, ("texts_per_s", "p99_ms"), ("texts a second", "milliseconds, 99th percentile"),
        strict=True,
    ):  # fmt: skip
        for number, subject in enumerate(subjects):
            entries = [entry for entry in results if entry["subject"] == subject]
            values = [median(r.get(key, 0.0) for r in entry["rounds"]) for entry in entries]
            places = [place + number / (len(subjects) + 1) for place in range(len(loads))]
            axes.barh(places, values, height=0.8 / (len(subjects) + 1), label=subject,
                      color=_SUBJECT_COLOURS[number % len(_SUBJECT_COLOURS)])  # fmt: skip
        middle = (len(subjects) - 1) / 2 / (len(subjects) + 1)
        axes.set_yticks([place + middle for place in range(len(loads))], loads)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
    grid[1].set_xscale("log")
    grid[1].set_yticklabels([])
    grid[0].set_title(_title(record, "Many callers"), fontsize=10, loc="left")
    grid[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return figure


def _serve_soak(record: Record) -> "Figure":
    results = record["results"]
    minutes = [entry["minute"] for entry in results]
    figure, (memory, speed) = _figure(10, 3.6, columns=2)
    resident = [e["resident_bytes"] / 1e6 for e in results]
    memory.plot(minutes, resident, color=_SUBJECT_COLOURS[-1])
    memory.set(xlabel="minutes", ylabel="MB resident")
    memory.set_ylim(0, 1.2 * max(resident))
    memory.set_title(_title(record, "The server under load"), fontsize=10, loc="left")
    speed.plot(minutes, [e["texts_per_s"] for e in results], color=_SUBJECT_COLOURS[-1])
    speed.set(xlabel="minutes", ylabel="texts a second")
    speed.set_ylim(bottom=0)
    return figure


def _stream(record: Record) -> "Figure":
    results = record["results"]
    turned = [entry for entry in results if "turns_s" in entry]
    figure, grid = _figure(16 if turned else 11, 3.6, columns=3 if turned else 2)
    seconds, memory, *turns = grid
    styles = _styles(_names(results))
    for entry in results:
        name, style = entry["engine"], {**styles[entry["engine"]], "markevery": 0.2}
        if "long" in entry:
            tokens = [sample["tokens"] for sample in entry["long"]]
            seconds.plot(tokens, [e["seconds"] for e in entry["long"]], label=name, **style)
            memory.plot(tokens, [e["resident_bytes"] / 1e9 for e in entry["long"]], **style)
            thin = {**style, "linewidth": 0.8}
            memory.plot(tokens, [e["stream_bytes"] / 1e9 for e in entry["long"]], **thin)
        if "turns_s" in entry:
            at_each = [1e3 * median(walks) for walks in zip(*entry["turns_s"], strict=True)]
            step = record["settings"]["plan"]["turn"] + 1
            positions = [step * number + step // 2 for number in range(len(at_each))]
            turns[0].plot(positions, at_each, label=name, **style)
    seconds.set(xlabel="tokens of a long stream", ylabel="seconds since its start")
    memory.set(xlabel="tokens of a long stream", ylabel="GB: process; thin, the stream")
    for axes in turns:
        axes.set(xlabel="position of the token", ylabel="ms a token, in turns")
    for axes in grid:
        axes.set_ylim(bottom=0)
    seconds.set_title(_title(record, "Streams"), fontsize=10, loc="left")
    grid[-1].legend(
        *(turns or [seconds])[0].get_legend_handles_labels(),
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        fontsize=8,
        frameon=False,
        handlelength=3.5,
    )
    figure.tight_layout()
    return figure


_CHARTS: dict[str, Callable[[Record], "Figure | None"]] = {
    "latency": _latency,
    "throughput": _throughput,
    "memory": _memory,
    "cold-start": _cold_start,
    "scaling": _scaling,
    "fidelity": _fidelity,
    "serve": _serve,
    "serve-soak": _serve_soak,
    "stream": _stream,
}


def _bars(record: Record, values: Mapping[str, float], label: str, title: str) -> "Figure":
    figure, (axes,) = _figure(8, 1.2 + 0.42 * len(values))
    names = list(values)
    bars = axes.barh(names, list(values.values()), color=[_colour(name) for name in names])
    axes.bar_label(bars, fmt="{:.3g}", padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
    axes.set_title(_title(record, title), fontsize=10, loc="left")
    return figure


def _figure(width: float, height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Make a figure with axes side by side."""
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False)
    for one in grid[0]:
        one.grid(visible=True, which="major", color="#dddddd", linewidth=0.7)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[0])


def _logarithmic(axes: "Axes", ticks: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{n / 1e6:,.0f}M" if n >= 1e6 else f"{n:,}" for n in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _finish(axes: "Axes", record: Record, title: str) -> None:
    axes.set_title(_title(record, title), fontsize=10, loc="left")
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False, handlelength=3.5
    )


def _title(record: Record, title: str) -> str:
    threads = record["settings"].get("threads")
    on = record["machine"]["cpu"] + (f", threads: {threads}" if isinstance(threads, int) else "")
    return f"{title}: {record['settings']['head']}\n{on}"


def _names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(entry["engine"] for entry in results))


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    seen: dict[str, int] = {}
    styles = {}
    for name in names:
        colour = _colour(name)
        number = seen[colour] = seen.get(colour, -1) + 1
        styles[name] = {
            "color": colour,
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _LINES[number % len(_LINES)],
            "linewidth": 2.2 if name.startswith("siren-edge") else 1.4,
            "markersize": 5,
        }
    return styles


def _colour(name: str) -> str:
    return next((colour for family, colour in _FAMILIES.items() if family in name), _OTHER)
