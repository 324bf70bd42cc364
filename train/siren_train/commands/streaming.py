"""What `siren evaluate --streaming` does."""

from collections.abc import Sequence
from pathlib import Path

import typer

from siren_runtime import Guard
from siren_runtime.commands.console import report, warnings_reported
from siren_train.data.sources import Source
from siren_train.data.streams import read_stream_rows
from siren_train.measure.streaming_evaluation import (
    StreamingEvaluation,
    measure_streaming,
    streaming_markdown,
    trace_streams,
)
from siren_train.measure.streaming_plot import plot_onset

from .bars import Bars
from .reports import write_report

_REENCODED_WORDS = 8  # fewer scores, because an encoder reads the whole text anew for each


def evaluate_streaming(
    guard: Guard,
    bundle: str,
    sources: Sequence[Source],
    *,
    split: str,
    split_column: str,
    threshold: float | None,
    words: int | None,
    output: Path | None,
) -> None:
    """Stream every response of a split, print the table, and write the report to `output`.

    Args:
        threshold: None takes the bundle's.
        words: between two scores; None takes 1, or 8 where the bundle has no streaming graph.
        output: a folder for JSON, table and plot; None writes nothing.

    Raises:
        InputError: the data is unusable, or a file cannot be written.
    """
    rows = read_stream_rows(sources, split, split_column)
    incremental = "stream" in guard.manifest.graphs
    words = words or (1 if incremental else _REENCODED_WORDS)
    threshold = guard.default_threshold if threshold is None else threshold
    with warnings_reported(), Bars() as bars:
        traces = trace_streams(
            guard,
            rows,
            words,
            response_only=incremental,
            progress=bars.update,
        )
    names = dict.fromkeys(row.dataset for row in rows)
    evaluation = StreamingEvaluation(
        bundle=bundle,
        sources=[source.location for source in sources],
        split=split,
        threshold=threshold,
        reads="the response, after its prompt" if incremental else "prompt and response",
        words=words,
        by_dataset={
            name: measure_streaming([t for t in traces if t.row.dataset == name], threshold)
            for name in names
        },
    )
    markdown = streaming_markdown(evaluation)
    typer.echo(markdown, nl=False)
    if output is not None:
        write_report(output, "streaming", evaluation, markdown)
        plot_onset(traces, threshold, output / "onset.png")
        report(f"{output}: streaming.json, streaming.md and onset.png")
