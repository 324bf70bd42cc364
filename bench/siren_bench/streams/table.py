"""What streams cost, as tables."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from siren_bench.records.record import markdown_table
from siren_bench.records.samples import spread
from siren_bench.speed.latency import milliseconds

from .stream import Plan, llm_siren_dtypes


def stream_tables(results: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """Lay out the figures of our engines, one a row; below them the turns with generators."""
    ours = [entry for entry in results if "summary" in entry]
    columns = [dict(_rows(entry, plan)) for entry in ours]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    table = markdown_table(["stream", *(entry["engine"] for entry in ours)], rows)
    turned = [entry for entry in results if "turns_s" in entry]
    return f"{table}\n{_turns_table(turned, plan)}" if turned else table


def _rows(entry: Mapping[str, Any], plan: Plan) -> list[tuple[str, str]]:
    summary = entry["summary"]
    rows = [
        (f"{plan.tokens} tokens, scored at every one, s", f"{summary['total_single_s']:.1f}"),
        (f"{plan.tokens} tokens, every {plan.chunk}, s", f"{summary['total_chunked_s']:.1f}"),
    ]
    for dtype in llm_siren_dtypes(entry):
        for unit, every in (("token", "every one"), ("chunk", f"every {plan.chunk}")):
            rows.append(
                (
                    f"llm-siren {dtype}, {every}, s (extrapolated), ratio",
                    f"{summary[f'{dtype}_every_{unit}_s']:.0f}, "
                    f"{summary[f'{dtype}_every_{unit}_ratio']:.1f}x",
                )
            )
    return [
        *rows,
        (f"a token at position {plan.early}, ms", f"{1e3 * summary['early_s']:.1f}"),
        (f"a token at position {plan.late}, ms", f"{1e3 * summary['late_s']:.1f}"),
        (f"position {plan.late} to {plan.early}", f"{summary['late_to_early']:.2f}x"),
        (f"a token in chunks of {plan.chunk} to alone", f"{summary['chunked_to_single']:.2f}x"),
        ("one stream, tokens a second", f"{summary['one_stream_tokens_per_s']:.1f}"),
        (
            f"{plan.streams} streams in a batch, tokens a second",
            f"{summary['batch_tokens_per_s']:.1f} ({summary['batch_to_one']:.1f}x)",
        ),
        ("memory a stream, MB", f"{summary['bytes_per_stream'] / 1e6:.1f}"),
        ("memory of a guard that scores, MB", f"{summary['scoring_bytes'] / 1e6:.0f}"),
        (
            "that streams and scores, MB; switching to it, at most",
            f"{summary['streaming_bytes'] / 1e6:.0f}; {summary['switching_peak_bytes'] / 1e6:.0f}",
        ),
        (
            "floor: weights over memory bandwidth, ms a token",
            f"{1e3 * summary['floor_s']:.1f} ({summary['floor_reached']:.0%} reached)",
        ),
    ]


def _turns_table(turned: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """Medians over turns; ratios are of turns at the same positions, their medians and deciles."""
    generators = [entry["engine"] for entry in turned if "to_generators" not in entry]
    rows = []
    for entry in turned:
        seconds = [second for walk in entry["turns_s"] for second in walk]
        ratios = [entry.get("to_generators", {}).get(name) for name in generators]
        shown = ["" if found is None else spread(found) for found in ratios]
        rows.append([entry["engine"], milliseconds(median(seconds)), *shown])
    header = ["a token, in turns", "ms", *(f"time over {name}" for name in generators)]
    pairs = sum(map(len, turned[0]["turns_s"]))
    return (
        f"{markdown_table(header, rows)}\nMedians of {pairs} turns of {plan.turn} tokens, and of "
        "ratios of turns at the same positions; in brackets the ratios' 10th to 90th percentile.\n"
    )
