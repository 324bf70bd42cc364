"""Feed responses to streams as they would arrive, and keep the score of each head at each piece."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard, Stream, Streams
from siren_runtime.bundle.progress import Progress, by_length, silent
from siren_runtime.errors import SirenError
from siren_runtime.streaming.result import StreamResult
from siren_train.data.streams import StreamRow, pieces_of

_TOGETHER = 16  # streams in one batch

IntArray = NDArray[np.int64]
DoubleArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trace:
    """A stream's scores by one head, one a piece: its risks, by which it decides.

    Attributes:
        row: what was streamed.
        tokens_before: tokens that counted before the response began.
        characters: int64 [pieces], of the response, fed so far.
        tokens: int64 [pieces], that count so far; never falling.
        scores: float64 [pieces], the primary head's; where spans or labels count, with theirs.
        slid: whether text slid out of the stream.
        heads: float64 [pieces], those of every head by name.
    """

    row: StreamRow
    tokens_before: int
    characters: IntArray
    tokens: IntArray
    scores: DoubleArray
    slid: bool
    heads: Mapping[str, DoubleArray] = field(default_factory=dict)

    def by(self, head: str) -> "Trace":
        """Return the trace by another head."""
        return replace(self, scores=self.heads[head])

    @property
    def peak(self) -> float:
        """The highest score: a threshold up to it raises an alarm."""
        return float(self.scores.max())

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


def trace_streams(
    guard: Guard,
    rows: Sequence[StreamRow],
    words: int,
    *,
    response_only: bool,
    progress: Progress = silent,
) -> list[Trace]:
    """Feed every response to a stream of its own, many at a time, `words` words at a time.

    Its text ends with the last piece. Spans count where they do in the guard's streams.

    Args:
        response_only: keep the prompt out of the mean. A bundle without a streaming graph cannot.

    Raises:
        InputError, BackendError: a text cannot be scored.
    """
    traces: dict[int, Trace] = {}
    waiting = iter(enumerate(rows))
    active: dict[Stream, tuple[int, _Feeding]] = {}
    # Those that are done are the first ones, but for some of the last few.
    tell = by_length(progress, "streaming", [len(row.response) for row in rows])
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
            tell(len(traces))


class _Feeding:
    """A row that is being streamed: its next piece, and what came of the earlier ones."""

    def __init__(self, stream: Stream, row: StreamRow, words: int, response_only: bool) -> None:
        self.stream, self.row = stream, row
        self._pieces = [*pieces_of(row, words)]
        # Where the prompt counts, its tokens are those of an empty response.
        counts = row.prompt != "" and not response_only
        self._before = stream.feed("").tokens if counts else 0
        self._points: list[tuple[int, int]] = []
        self._scores: list[list[float]] = []
        self._heads: list[str] = []

    @property
    def piece(self) -> str | None:
        """The next piece; None once all are fed."""
        fed = len(self._points)
        return self._pieces[fed] if fed < len(self._pieces) else None

    @property
    def is_last(self) -> bool:
        """Whether the text ends with the next piece."""
        return len(self._points) == len(self._pieces) - 1

    def note(self, result: StreamResult) -> None:
        """Note what came of the piece, and go on to the next."""
        fed = self._points[-1][0] if self._points else 0
        self._points.append((fed + len(self.piece or ""), result.tokens))
        self._heads = list(result.heads)
        self._scores.append([head.risk for head in result.heads.values()])

    def trace(self) -> Trace:
        characters, tokens = zip(*self._points, strict=True)
        scores, result = np.array(self._scores, np.float64), self.stream.result
        return Trace(
            self.row,
            self._before,
            np.array(characters, np.int64),
            np.maximum.accumulate(np.array(tokens, np.int64)),
            scores[:, 0],
            slid=result is not None and result.slid,
            heads=dict(zip(self._heads, scores.T, strict=True)),
        )


def _feed(streams: Streams, feedings: Sequence[_Feeding]) -> None:
    results = streams.feed(
        [(feeding.stream, feeding.piece or "") for feeding in feedings],
        last=[feeding.stream for feeding in feedings if feeding.is_last],
    )
    for feeding, result in zip(feedings, results, strict=True):
        if isinstance(result, SirenError):
            raise type(result)(f"{feeding.row.origin}: {result}")
        feeding.note(result)
