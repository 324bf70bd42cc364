"""What `siren evaluate --streaming` does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from siren_runtime import Guard
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report, warnings_reported, write_lines
from siren_runtime.generation.manifest import Pooled
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns
from siren_train.data.sources import Source
from siren_train.data.streams import read_stream_rows
from siren_train.measure.alarms import alarm_threshold
from siren_train.measure.reports import measured_by, write_report
from siren_train.measure.stated import Stated, stated_reading
from siren_train.measure.streaming_evaluation import (
    HeadAlarms,
    StreamingEvaluation,
    StreamingMetrics,
    measure_streaming,
    streaming_markdown,
)
from siren_train.measure.streaming_plot import plot_onset
from siren_train.measure.traces import Trace, trace_streams

_REENCODED_WORDS = 8  # fewer scores, because an encoder reads the whole text anew for each


def evaluate_streaming(
    guard: Guard,
    bundle: str,
    sources: Sequence[Source],
    columns: Columns,
    *,
    split: str,
    threshold: float | None,
    words: int | None,
    pool: Pooled,
    false_alarms: float | None,
    max_rows: int | None,
    output: Path | None,
) -> None:
    """Stream every response of a split, print the table, and write the report to `output`.

    Args:
        threshold: None takes the bundle's; that of responses, where it has one.
        words: between two scores; None takes 1, or 8 where the bundle has no streaming graph.
        pool: what counts, the prompt and the response or the response alone.
        false_alarms: the share of safe streams that may raise an alarm; each head's threshold is
            then chosen by it, on these very streams.
        max_rows: of each data set, of each kind alike; None is all.
        output: a folder for JSON, table and plot; None writes nothing.

    Raises:
        InputError: the data is unusable, or a file cannot be written.
    """
    rows = sampled(read_stream_rows(sources, split, columns), max_rows)
    incremental = guard.manifest.streams
    words = words or (1 if incremental else _REENCODED_WORDS)
    response_only = incremental and pool == "response"
    primary, *further = guard.heads
    decides = {
        name: Stated(head.of_text(True).threshold, each_label=bool(head.labels))
        for name, head in guard.judge.heads.items()
    }
    if threshold is not None:
        decides[primary] = Stated(threshold)
    with warnings_reported(), Bars() as bars:
        traces = trace_streams(
            guard,
            rows,
            words,
            response_only=response_only,
            progress=bars.update,
        )
    if false_alarms is not None:
        decides = {
            name: Stated(alarm_threshold([trace.by(name) for trace in traces], false_alarms))
            for name in guard.heads
        }
    threshold = decides[primary].threshold
    evaluation = StreamingEvaluation(
        bundle=bundle,
        sources=[source.location for source in sources],
        split=split,
        threshold=threshold,
        reads="the response, after its prompt" if response_only else "prompt and response",
        words=words,
        by_dataset=_by_dataset(traces, threshold),
        false_alarms=false_alarms,
        heads=_by_head(guard, traces, decides) if further or false_alarms is not None else {},
        max_rows=max_rows,
        each_label=decides[primary].each_label,
        spans=stated_reading(guard).spans,
    )
    markdown = streaming_markdown(evaluation)
    write_lines(markdown)
    if output is not None:
        write_report(output, "streaming", evaluation, markdown, measured_by(guard))
        plot_onset(traces, threshold, output / "onset.png")
        report(f"{output}: streaming.json, streaming.md and onset.png")


def _by_head(
    guard: Guard, traces: Sequence[Trace], decides: Mapping[str, Stated]
) -> dict[str, HeadAlarms]:
    found = {}
    for name, stated in decides.items():
        by_dataset = _by_dataset([trace.by(name) for trace in traces], stated.threshold)
        smoothing = guard.manifest.decision(name).smoothing
        spans = stated_reading(guard, name).spans
        found[name] = HeadAlarms(stated.threshold, smoothing, by_dataset, stated.each_label, spans)
    return found


def _by_dataset(traces: Sequence[Trace], threshold: float) -> dict[str, StreamingMetrics]:
    names = dict.fromkeys(trace.row.dataset for trace in traces)
    return {
        name: measure_streaming([t for t in traces if t.row.dataset == name], threshold)
        for name in names
    }
