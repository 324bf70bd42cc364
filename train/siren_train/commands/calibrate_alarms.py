"""What `siren calibrate --false-alarms` does: a head's threshold and smoothing, over streams."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from siren_runtime import Guard
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.reader import Bundle
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import write_lines
from siren_runtime.errors import InputError
from siren_runtime.generation.manifest import Pooled
from siren_runtime.scoring.engines import Engines, Request, open_engines
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.reading import LLM_SIREN_LIMITS
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns
from siren_train.data.sources import Source
from siren_train.data.streams import StreamRow, read_stream_rows


def calibrate_alarms(
    bundle: Bundle,
    head: str,
    rate: float,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    max_rows: int | None,
    threads: int | None,
    pool: Pooled,
) -> Decision:
    """Choose the threshold and smoothing of a head on the streams of a split, and write them.

    Streams are as `Guard.load` opens them by default, so spans count where the head has thresholds
    for them. These move with the head's.

    Args:
        rate: the share of safe streams that may raise an alarm.
        max_rows: of each data set, of each kind alike; None is all.

    Raises:
        InputError: the data is unusable or has only one kind of stream, the head is one of labels,
            or the bundle has no streaming graph.
    """
    from siren_train.measure.alarms import alarming, choose_smoothing, find_alarms
    from siren_train.measure.decisions import write_decided
    from siren_train.measure.traces import Trace, trace_streams

    if not bundle.manifest.streams:
        raise InputError(
            f"{bundle.path}: has no streaming graph, so no score a token to smooth; calibrate by "
            "--threshold"
        )
    if bundle.manifest.heads[head].has_labels:
        raise InputError(
            f"{bundle.path}: head {head!r} has labels, each of which decides from a threshold of "
            "its own on; alarms are of heads with one score"
        )
    rows = sampled(read_stream_rows(sources, split, columns), max_rows)
    _check_kinds(rows, split)
    engines = open_engines(bundle, Request(threads=threads, streaming=True))
    old = bundle.manifest.decision(head)

    def traced(smoothing: int, bars: Bars, *, spans: bool) -> list[Trace]:
        guard = _smoothed_guard(bundle, engines, head, smoothing, spans=spans)
        response_only = pool == "response"
        traces = trace_streams(guard, rows, 1, response_only=response_only, progress=bars.update)
        return [trace.by(head) for trace in traces]

    with Bars() as bars:
        traces = traced(1, bars, spans=False)
        smoothing = choose_smoothing(traces, rate)
    with Bars() as bars:
        if smoothing > 1 or old.spans:
            traces = traced(smoothing, bars, spans=True)
    found = find_alarms(traces, rate, smoothing)
    decision = alarming(bundle.manifest.heads[head], old, smoothing, found.threshold)
    manifest = write_decided(bundle.path, bundle.manifest, head, decision)
    write_lines(
        f"threshold: from {found.threshold:.4f}, scores averaged over {found.smoothing} tokens; "
        f"{found.coverage:.1%} of the harmful {split} streams stopped in time, "
        f"{found.false_alarms:.1%} of the safe ones stopped"
    )
    for span in decision.spans:
        write_lines(f"spans of {span.tokens} tokens: from {span.threshold:.10g}")  # may be near 1
    return manifest.decision(head)


def _check_kinds(rows: Sequence[StreamRow], split: str) -> None:
    harmful = sum(row.span is not None for row in rows)
    if not 0 < harmful < len(rows):
        raise InputError(
            f"of {len(rows)} {split} streams {harmful} are harmful; a threshold needs both kinds: "
            "give a label, or harm_start and harm_end"
        )


def _smoothed_guard(
    bundle: Bundle, engines: Engines, head: str, smoothing: int, *, spans: bool
) -> Guard:
    """The guard that the bundle would be if the head's scores were averaged so.

    Args:
        spans: whether they count, where the bundle has thresholds for them.
    """
    manifest = bundle.manifest
    decision = msgspec.structs.replace(manifest.decision(head), smoothing=smoothing)
    scorer = Scorer(replace(bundle, manifest=manifest.deciding(head, decision)), engines)
    return Guard([scorer], limits=replace(LLM_SIREN_LIMITS, spans=None if spans else ()))
