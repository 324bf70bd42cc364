"""Stream responses through a guard as they would arrive, and measure when it raises the alarm.

The protocol is that of the SIREN paper (arXiv 2604.18519). A response whose harmful span is known
is scored as it grows, and recall is measured at the end of the span and some tokens later. The
alarm is the first score that reaches the threshold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard, Stream, Streams
from siren_runtime.bundle.progress import Progress
from siren_runtime.errors import SirenError
from siren_train.data.streams import StreamRow, pieces_of

LATER_TOKENS = (0, 32, 64, 128, 256)
_TOGETHER = 16  # streams in one batch

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trace:
    """A stream's scores, one a piece.

    Attributes:
        row: what was streamed.
        tokens_before: tokens that counted before the response began.
        characters: int64 [pieces], of the response, fed so far.
        tokens: int64 [pieces], that count so far; never falling.
        scores: float64 [pieces].
        slid: whether text slid out of the stream.
    """

    row: StreamRow
    tokens_before: int
    characters: IntArray
    tokens: IntArray
    scores: NDArray[np.float64]
    slid: bool

    def tokens_at(self, character: int) -> int:
        """Return how many tokens count once `character` characters are fed."""
        index = int(np.searchsorted(self.characters, character, side="right")) - 1
        return int(self.tokens[index]) if index >= 0 else self.tokens_before

    def score_at(self, token: int) -> float:
        """Return the last score once `token` tokens count; NaN before the first score."""
        index = int(np.searchsorted(self.tokens, token, side="right")) - 1
        return float(self.scores[index]) if index >= 0 else float("nan")

    def alarm(self, threshold: float) -> int | None:
        """Return the first piece whose score reaches the threshold, or None."""
        alarms = np.flatnonzero(self.scores >= threshold)
        return int(alarms[0]) if len(alarms) else None


class StreamingMetrics(msgspec.Struct, frozen=True):
    """What the traces of one data set say. A metric is None if it has no stream to be taken of.

    Attributes:
        harmful, safe: how many streams there are of each kind.
        recall: by a number of tokens after the end of the span, the share of harmful streams whose
            score is then at least the threshold. A stream that has ended by then counts with its
            last score.
        reached: by the same numbers, how many harmful streams are as long as that.
        false_alarms: share of the safe streams that raise an alarm anywhere.
        early, on_time, late, missed: shares of the harmful streams whose first alarm comes before
            harm starts, by its end, after its end, or never. They add up to 1.
        delay_median, delay_mean: tokens from the start of harm to the alarm, over the alarms that
            are on time or late.
        saved_mean: mean number of tokens of a harmful stream after its alarm, which need not be
            generated.
        saved_share: share of all tokens of harmful streams that come after the alarm.
        slid: streams that no longer held all of their text.
    """

    harmful: int
    safe: int
    recall: dict[int, float | None]
    reached: dict[int, int]
    false_alarms: float | None
    early: float | None
    on_time: float | None
    late: float | None
    missed: float | None
    delay_median: float | None
    delay_mean: float | None
    saved_mean: float | None
    saved_share: float | None
    slid: int


class StreamingEvaluation(msgspec.Struct, frozen=True):
    """What a streaming evaluation found.

    Attributes:
        reads: what the scores are of, in words.
        words: how many words there are between two scores.
    """

    bundle: str
    sources: list[str]
    split: str
    threshold: float
    reads: str
    words: int
    by_dataset: dict[str, StreamingMetrics]


def trace_streams(
    guard: Guard,
    rows: Sequence[StreamRow],
    words: int,
    *,
    response_only: bool,
    progress: Progress = lambda stage, done, total: None,
) -> list[Trace]:
    """Feed every response to a stream of its own, many at a time, `words` words at a time.

    Args:
        response_only: keep the prompt out of the mean. A bundle without a streaming graph cannot.

    Raises:
        InputError, BackendError: a text cannot be scored.
    """
    traces: dict[int, Trace] = {}
    waiting = iter(enumerate(rows))
    active: dict[Stream, tuple[int, _Feeding]] = {}
    with guard.streams(max_streams=_TOGETHER) as streams:
        while True:
            while len(active) < _TOGETHER and (entry := next(waiting, None)) is not None:
                index, row = entry
                stream = streams.open(row.prompt, response_only=response_only)
                active[stream] = index, _Feeding(stream, row, words, response_only)
            if not active:
                return [traces[index] for index in range(len(rows))]
            _feed(streams, [feeding for _, feeding in active.values()])
            for stream, (index, feeding) in list(active.items()):
                if feeding.piece is None:
                    traces[index] = feeding.trace()
                    stream.close()
                    del active[stream]
            progress("streaming", len(traces), len(rows))


class _Feeding:
    """A row that is being streamed: its next piece, and what came of the earlier ones."""

    def __init__(self, stream: Stream, row: StreamRow, words: int, response_only: bool) -> None:
        self.stream, self.row = stream, row
        self._pieces: Iterator[str] = pieces_of(row, words)
        self.piece: str | None = next(self._pieces)
        # Where the prompt counts, its tokens are those of an empty response.
        counts = row.prompt is not None and not response_only
        self._before = stream.feed("").tokens if counts else 0
        self._points: list[tuple[int, int, float]] = []

    def note(self, tokens: int, score: float) -> None:
        """Note what came of the piece, and go on to the next."""
        fed = self._points[-1][0] if self._points else 0
        self._points.append((fed + len(self.piece or ""), tokens, score))
        self.piece = next(self._pieces, None)

    def trace(self) -> Trace:
        characters, tokens, scores = zip(*self._points, strict=True)
        result = self.stream.result
        return Trace(
            self.row,
            self._before,
            np.array(characters, np.int64),
            np.maximum.accumulate(np.array(tokens, np.int64)),
            np.array(scores, np.float64),
            slid=result is not None and result.slid,
        )


def _feed(streams: Streams, feedings: Sequence[_Feeding]) -> None:
    results = streams.feed([(feeding.stream, feeding.piece or "") for feeding in feedings])
    for feeding, result in zip(feedings, results, strict=True):
        if isinstance(result, SirenError):
            raise type(result)(f"{feeding.row.origin}: {result}")
        feeding.note(result.tokens, result.score)


def measure_streaming(traces: Sequence[Trace], threshold: float) -> StreamingMetrics:
    """Measure the traces of one data set."""
    harmful = [(trace, trace.row.span) for trace in traces if trace.row.span is not None]
    safe = [trace for trace in traces if trace.row.span is None]
    recall: dict[int, list[bool]] = {later: [] for later in LATER_TOKENS}
    reached = dict.fromkeys(LATER_TOKENS, 0)
    outcomes, delays, saved, lengths = [], [], [], []
    for trace, (start, end) in harmful:
        end_token = trace.tokens_at(end)
        for later in LATER_TOKENS:
            recall[later].append(trace.score_at(end_token + later) >= threshold)
            reached[later] += int(trace.tokens[-1]) >= end_token + later
        alarm = trace.alarm(threshold)
        outcomes.append(_outcome(trace, alarm, start, end))
        lengths.append(int(trace.tokens[-1]) - trace.tokens_before)
        saved.append(0 if alarm is None else int(trace.tokens[-1] - trace.tokens[alarm]))
        if alarm is not None and outcomes[-1] != "early":
            delays.append(int(trace.tokens[alarm]) - trace.tokens_at(start))
    shares = {name: _mean([outcome == name for outcome in outcomes]) for name in _OUTCOMES}
    return StreamingMetrics(
        harmful=len(harmful),
        safe=len(safe),
        recall={later: _mean(hits) for later, hits in recall.items()},
        reached=reached,
        false_alarms=_mean([trace.alarm(threshold) is not None for trace in safe]),
        **shares,
        delay_median=float(np.median(delays)) if delays else None,
        delay_mean=_mean(delays),
        saved_mean=_mean(saved),
        saved_share=sum(saved) / sum(lengths) if lengths else None,
        slid=sum(trace.slid for trace in traces),
    )


_OUTCOMES = ("early", "on_time", "late", "missed")


def _outcome(trace: Trace, alarm: int | None, start: int, end: int) -> str:
    if alarm is None:
        return "missed"
    fed = trace.characters[alarm]
    return "early" if fed <= start else "on_time" if fed <= end else "late"


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def streaming_markdown(evaluation: StreamingEvaluation) -> str:
    """Return the table of a streaming evaluation, one column for each data set, as Markdown."""
    metrics = evaluation.by_dataset.values()
    rows: list[tuple[str, list[str]]] = [
        ("harmful streams, safe streams", [f"{m.harmful}, {m.safe}" for m in metrics])
    ]
    for later in LATER_TOKENS:
        where = f"{later} tokens after it" if later else "the end of the harmful span"
        rows.append(
            (
                f"recall at {where} (streams so long)",
                [f"{_share(m.recall[later])} ({m.reached[later]})" for m in metrics],
            )
        )
    for title, name in (
        ("false alarms on safe streams", "false_alarms"),
        ("alarm before the onset", "early"),
        ("on time: by the end of the span", "on_time"),
        ("late", "late"),
        ("missed", "missed"),
    ):
        rows.append((title, [_share(getattr(m, name)) for m in metrics]))
    rows += [
        (
            "tokens from onset to alarm, median (mean)",
            [f"{_number(m.delay_median)} ({_number(m.delay_mean)})" for m in metrics],
        ),
        (
            "tokens saved a harmful stream (share)",
            [f"{_number(m.saved_mean)} ({_share(m.saved_share)})" for m in metrics],
        ),
        ("streams that text slid out of", [str(m.slid) for m in metrics]),
    ]
    lines = [
        f"# Streaming evaluation on the {evaluation.split} split",
        "",
        f"Guard: {evaluation.bundle}; threshold {evaluation.threshold:g}; scores of "
        f"{evaluation.reads}, every {evaluation.words} word(s).",
        "",
        f"| streams | {' | '.join(evaluation.by_dataset)} |",
        "| --- " + "| ---: " * len(evaluation.by_dataset) + "|",
        *(f"| {title} | {' | '.join(values)} |" for title, values in rows),
    ]
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
