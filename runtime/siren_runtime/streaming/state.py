"""What a stream has read: its tokens, and for each of them what rolling back to it needs."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from siren_runtime.backends.outputs import FloatArray, span_means

from .aggregation import Aggregation, moving_average
from .growing_text import Offsets, Tokens
from .spans import NOTHING_AMID
from .waiting import Waiting

_GRANULE = 64  # rows

# The tokens that stay of a stream and the most that it held -> how many need not be read again.
Usable = Callable[[int, int], int]


class StreamState:
    """The tokens read and those pending, with a row of pooled neurons and a score of each token
    read. `readouts` are of those tokens too: what `siren_runtime.backends.readout` has of all
    heads, or None where only the primary head's score was read. They and the scores are moving
    averages where heads are smoothed.

    Where exits may decide (`early`), tokens count as read when the first segment has read them.
    Those that wait behind an exit (`waiting`) have its score, or what it decided where there is a
    verdict on them: on the last token, or with `judges_each` on all, of which the first `judged`
    have theirs. `exit` is how many blocks read the last one, where an exit decided. `to_end` says
    that the whole guard must read all.

    Where the text is read anew, `new_spans` are those that come with the pending tokens, each by
    its first token and the one behind its last; `amid` is what the engine tells of them, where it
    does.

    `base` and `base_count` are of the tokens that slid out of the stream, which `slid` says there
    are. `written` is the most tokens that were read since it was empty.
    """

    def __init__(
        self,
        neurons: int,
        aggregation: Aggregation | None,
        smoothing: FloatArray | None = None,
        *,
        early: bool = False,
        judges_each: bool = False,
    ) -> None:
        """Begin with no token.

        Args:
            neurons: how many the heads read together.
            smoothing: as `Readout.smoothing`.
            early: whether exits may decide on it, where its reader has them.
            judges_each: whether it needs a verdict on each token, as decision rules do.
        """
        self.early, self.waiting = early, Waiting()
        self.judges_each, self.judged = judges_each, 0
        self.exit: int | None = None
        self.to_end = False
        self.aggregation, self.smoothing = aggregation, smoothing
        self.ids: list[int] = []
        self.offsets: list[Offsets] = []
        self.pending: list[int] = []
        self.written = 0
        self.changed = False  # since the last tokens were taken over
        self.context = 0
        self.new_spans: list[tuple[int, int]] = []
        self.amid = NOTHING_AMID
        self.scores: list[float] = []
        self.readouts: list[FloatArray | None] = []
        self.base: FloatArray = np.zeros(neurons, np.float32)
        self.base_count = 0
        self.base_readout: FloatArray | None = None
        self.slid = False
        self._rows: FloatArray = np.zeros((0, neurons), np.float32)

    @property
    def bytes(self) -> int:
        """Memory of the rows and of what waits, which is what there is beside the cache."""
        return self._rows.nbytes + self.waiting.bytes

    def set_tokens(self, tokens: Tokens, limit: int, usable: Usable) -> int:
        """Take over the tokens of all text so far; those to read, up to `limit`, are pending.

        Returns:
            How many tokens were taken back: read before, and now others stand in their place.
        """
        common = 0
        for old, new in zip(self.ids, tokens.ids, strict=False):
            if old != new:
                break
            common += 1
        if tokens.context != self.context:
            common = min(common, tokens.context)
        taken_back = len(self.ids) - common
        common = usable(common, self.written)
        self.written = self.written if common else 0
        del self.ids[common:], self.scores[common:], self.readouts[common:]
        self.context = tokens.context
        self.waiting.cut(common)
        self.judged = min(self.judged, common)
        self.to_end = len(tokens.ids) > limit
        self.offsets = tokens.offsets[:limit]
        self.pending = tokens.ids[common:limit]
        self.changed = taken_back > 0 or bool(self.pending)
        return taken_back

    def expect(self, spans: Sequence[tuple[int, int]]) -> None:
        """Note which spans come with the pending tokens; what was told of others is forgotten."""
        self.new_spans, self.amid = [*spans], NOTHING_AMID

    @property
    def may_leave(self) -> bool:
        """Whether exits may decide now: there are some, and no text has slid out."""
        return bool(self.waiting.read) and not self.slid

    def unjudged(self, number: int) -> slice:
        """The tokens without a verdict, of those that a segment has read and none behind it.

        Where only the last token needs one, it alone counts.
        """
        first = self.judged if self.judges_each else len(self.ids) - 1
        return slice(max(first, self.waiting.read[number + 1]), self.waiting.read[number])

    def judge(self, tokens: slice, decided: FloatArray) -> None:
        """Take over what an exit decided on tokens, float32 [tokens]."""
        self.scores[tokens] = decided.tolist()
        self.readouts[tokens] = list(decided[:, None])

    def waiting_ids(self, number: int) -> list[int]:
        """The tokens that a segment is to read: those pending, and of a later one what waits."""
        read = self.waiting.read
        return self.ids[read[number] : read[number - 1]] if number else self.pending

    def next_chunk(self, most: int) -> int:
        """How many pending tokens can be read at once: context and counted ones apart."""
        read, most = len(self.ids), min(most, len(self.pending))
        return min(most, self.context - read) if read < self.context else most

    def summed(self, read: int | None = None) -> tuple[FloatArray, int]:
        """The row before the next token and the number of tokens in it, for the mean.

        Args:
            read: tokens before the next one; None is all that were read.
        """
        read = len(self.ids) if read is None else read
        if read == self.context:
            return self.base, self.base_count
        if read == 0:
            return np.zeros_like(self.base), 0
        count = read if read < self.context else read - self.context + self.base_count
        return self._rows[read - 1], count

    def folded(self, neurons: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Fold the neurons of the next tokens [chunk, neurons] by the aggregation."""
        assert self.aggregation is not None
        read = len(self.ids)
        first = self.context if read >= self.context else 0
        before = self._rows[first:read]
        if first == read and self.base_count:
            before = self.base[None]
        return self.aggregation.fold(before, neurons)

    def commit(self, rows: FloatArray, readouts: FloatArray, *, whole: bool) -> None:
        """Move as many pending tokens as there are rows to those read.

        Args:
            rows: float32 [chunk, neurons].
            readouts: float32 [chunk, columns], the scores first.
            whole: whether these are all heads', as they must be where heads are smoothed.
        """
        read, count = len(self.ids), len(rows)
        readouts = self._smoothed(readouts)
        self._take_in(count)
        self._rows[read : read + count] = rows
        self.scores += readouts[:, 0].tolist()
        self.readouts += list(readouts) if whole else [None] * count

    def advance(
        self,
        number: int,
        columns: slice,
        rows: FloatArray,
        scores: FloatArray,
        states: Mapping[str, FloatArray],
    ) -> None:
        """Take over what a segment made of the next tokens that it reads.

        Args:
            number: the segment's; the first one reads pending tokens, the others what waits.
            columns: its neurons among all.
            rows: float32 [chunk, neurons], of these.
            scores: float32 [chunk], by its exit or, of the last segment, the head.
            states: what segments behind it read, float32 [chunk, ...] by name.
        """
        first, count = self.waiting.read[number], len(scores)
        if number == 0:
            self._take_in(count)
            self.scores += [0.0] * count
            self.readouts += [None] * count
        tokens = slice(first, first + count)
        self._rows[tokens, columns] = rows
        self.scores[tokens] = scores.tolist()
        self.readouts[tokens] = list(scores[:, None])
        self.judged = min(self.judged, first)
        self.waiting.advance(number, count, states)

    def _take_in(self, count: int) -> None:
        """Move pending tokens to those read, and make room for their rows."""
        read = len(self.ids)
        if read + count > len(self._rows):
            grown = np.zeros(
                (-(-(read + count) * 5 // 4 // _GRANULE) * _GRANULE, self._rows.shape[1]),
                np.float32,
            )
            grown[:read] = self._rows[:read]
            self._rows = grown
        self.ids += self.pending[:count]
        del self.pending[:count]
        self.written = max(self.written, len(self.ids))

    def read_all(self, readout: FloatArray) -> None:
        """Move all pending tokens to those read, all with the one readout [width] after the last.

        Where tokens were taken back and none came, the last one left gets it.
        """
        if not self.pending:
            del self.scores[-1:], self.readouts[-1:]
        self.ids += self.pending
        self.pending = []
        new = len(self.ids) - len(self.scores)
        readouts = self._smoothed(np.repeat(readout[None], new, axis=0))
        self.scores += readouts[:, 0].tolist()
        self.readouts += list(readouts)

    def _smoothed(self, readouts: FloatArray) -> FloatArray:
        """The readouts of the next tokens [chunk, columns], averaged with those before."""
        if self.smoothing is None:
            return readouts
        read = len(self.scores)
        first = self.context if read >= self.context else 0
        last = self.readouts[read - 1] if read > first else None
        if read == self.context and self.base_count:
            last = self.base_readout
        return moving_average(last, readouts, self.smoothing)

    def means(self, spans: Sequence[tuple[int, int]]) -> FloatArray:
        """The mean over each span, and over the first token held, float32 [spans, neurons].

        Only for the mean over all tokens, of which the rows are running sums; those that do not
        count have sums of their own.

        Args:
            spans: the first token of each and the one behind its last, none of which is cut by the
                first that counts.
        """
        starts, stops = np.array(spans).T
        sums = self._rows
        before = np.where((starts > self.context)[:, None], sums[starts - 1], self.base)
        first = sums[0] if self.context else sums[0] - self.base
        return span_means(starts, stops, before=before, last=sums[stops - 1], first=first)

    def last(self) -> tuple[FloatArray, int]:
        """The row after the last token read, and the number of tokens in it, for the mean."""
        read = len(self.ids)
        count = read if read <= self.context else read - self.context + self.base_count
        return self._rows[read - 1], count

    def position(self, index: int) -> int:
        """The position of a token among all that count, those that slid out included."""
        return index - self.context + self.base_count

    def slide(self, count: int) -> None:
        """Forget all tokens; the first `count` stay in the base."""
        self.slid = True
        if count > self.context:
            self.base_count += count - self.context
            self.base_readout = self.readouts[count - 1]
            if self._rows.size:
                self.base = self._rows[count - 1].copy()
        self.ids, self.offsets, self.scores, self.readouts = [], [], [], []
        self.waiting.cut(0)
        self.context = self.written = self.judged = 0
