"""The verdict on a sequence that a model reads and writes, by the neurons of its own passes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.backends.verdicts import HeadScore, verdict_of
from siren_runtime.scoring.verdict import Judge
from siren_runtime.streaming.aggregation import Aggregation, moving_average
from siren_runtime.streaming.decision import Decision, Decisions, Rule
from siren_runtime.streaming.result import StreamResult
from siren_runtime.streaming.spans import Highest
from siren_runtime.text.invisible import CutWords

from .head import HeadEngine
from .spans import ConversationSpans

_ROWS = 256  # that the head reads at once


class Watch:
    """Takes in the neurons of tokens and gives the verdict on all so far, as a stream does.

    Attributes:
        context: tokens in front that do not count.
        scores: of each token that was read, those of the context included; the primary head's.
        decisions: of the rules.
    """

    def __init__(
        self,
        head: HeadEngine,
        judge: Judge,
        aggregation: Aggregation | None,
        rules: Sequence[Rule],
        threshold: float | None,
        spans: ConversationSpans | None = None,
    ) -> None:
        """Begin with no token.

        Args:
            threshold: the primary head's in this run; None is its own.
            aggregation: None is the mean over all tokens that count.
            spans: scores spans too; None: they are not looked at.
        """
        self._readout, self._reader = head.readout, head.reader()
        self._width, self._pools_mean = head.width, head.pools_mean
        self._judge, self._aggregation, self._threshold = judge, aggregation, threshold
        self.decisions = Decisions(rules)
        self._pending: list[FloatArray] = []
        self.context, self._has_response = 0, False
        self._least_harmful = judge.least_harmful(threshold, False)
        self.scores: list[float] = []
        self._read: tuple[int, FloatArray] = 0, np.zeros((0, head.readout.width), np.float32)
        self._result: StreamResult | None = None
        self._spans = spans
        self._harmless: Highest | None = None  # spans of which none is
        self._end: int | None = None  # tokens with which the prompt or the response ends
        self._forget()

    def _forget(self) -> None:
        """Forget the neurons so far."""
        self._sum = np.zeros(self._width, np.float64)
        self._count = 0
        self._rows = np.zeros((0, self._width), np.float32)
        self._average: FloatArray | None = None
        self._words = CutWords()

    def tell(self, text: str) -> None:
        """Take in what the tokens that are read say, for `unknown`."""
        self._words.add(text)

    @property
    def unknown(self) -> float:
        """The share of the text so far whose words are cut by invisible characters, 0 to 1."""
        return self._words.share

    @property
    def is_unreadable(self) -> bool:
        """Whether too much of the text is unknown for a verdict of safe."""
        return self.unknown > self._judge.limits.max_unknown

    def add(self, neurons: FloatArray, tokens: Sequence[int]) -> None:
        """Take in the next tokens and their neurons, float32 [tokens, width].

        Nothing is scored yet: that costs next to nothing more for several tokens than for one.
        """
        self._pending.append(neurons)
        if self._spans is not None:
            self._spans.add(neurons, tokens)

    def begin_response(self, *, alone: bool) -> None:
        """What was read is the prompt, and the rest its response.

        Args:
            alone: the prompt counts no more.
        """
        self._has_response, self._harmless = True, None
        self._least_harmful = self._judge.least_harmful(self._threshold, True)
        if alone:
            self.context = len(self.scores)
            if self._spans is not None:
                self._spans.first = self.context
            self.decisions.update(self.scores, self.context)
            self._forget()

    def read(self) -> list[float]:
        """Score all tokens taken in, and fold the rules over their scores.

        Returns:
            The scores of those that were not read before; what they come to is `first_harmful`,
            `decisions` and `result`.

        Raises:
            BackendError: a neuron or a score is not finite.
        """
        rows = self._rows_of_pending()
        if self._readout.smoothing is not None:
            rows = moving_average(self._average, rows, self._readout.smoothing)
            self._average = rows[-1]
        scores: list[float] = rows[:, 0].tolist()
        self._read, self._result = (len(self.scores), rows), None
        self.scores += scores
        self.decisions.extend(scores)
        return scores

    def end(self) -> None:
        """What was read is all of the prompt or of the response: spans that its end cuts count."""
        self._end, self._result = len(self.scores), None

    def end_at(self, number: int) -> None:
        """Forget what was read behind that one of the tokens read last, which decides."""
        first, rows = self._read
        del self.scores[first + number + 1 :]
        self._read, self._result = (first, rows[: number + 1]), None

    @property
    def result(self) -> StreamResult:
        """The verdict on all tokens that were read, or those up to the one that decides."""
        if self._result is None:
            self._result = self._concluded(*self._read)
        return self._result

    def _concluded(self, first: int, rows: FloatArray) -> StreamResult:
        """The verdict, where the tokens from `first` on have just been read."""
        context = self.context if self.context < len(self.scores) else 0
        heads = self._verdicts(rows[-1], self._spans_at(len(self.scores)))
        return StreamResult(
            **verdict_of(heads),
            tokens=len(self.scores) - context,
            computed=len(self.scores) - first,
            rolled_back=0,
            slid=False,
            decisions=self._decisions(first),
            unknown=self.unknown,
        )

    def _decisions(self, first: int) -> tuple[Decision, ...]:
        """Those at tokens from `first` on."""
        if not self.decisions.rules:
            return ()
        count = len(self.scores) - self.context
        return tuple(found for found in self.decisions.since(first) if found.token < count)

    def first_harmful(self) -> int | None:
        """Which of the tokens read last is harmful by the primary head, the first; by itself or by
        the spans that are complete with it.

        Raises:
            BackendError: the engine failed in spans.
        """
        first, rows = self._read
        for number, row in enumerate(rows):
            spans = self._spans_at(first + number + 1)
            if self.scores[first + number] < self._least_harmful and spans is self._harmless:
                continue
            if next(iter(self._verdicts(row, spans).values())).is_harmful:
                return number
            self._harmless = spans
        return None

    def _spans_at(self, count: int) -> Highest | None:
        """The highest spans of the first `count` tokens; None where spans are not looked at."""
        return None if self._spans is None else self._spans.of(count, ended=count == self._end)

    def _verdicts(self, row: FloatArray, spans: Highest | None) -> dict[str, HeadScore]:
        """What the heads decide by a row of the readout, and by spans."""
        heads = self._readout.heads(row)
        if spans is not None:
            heads = {name: replace(head, spans=spans[name]) for name, head in heads.items()}
        return self._judge.on_heads(
            [heads],
            threshold=self._threshold,
            unknown=self.unknown,
            has_response=self._has_response,
            spans_asked=self._judge.limits.spans_asked,
        )

    def _rows_of_pending(self) -> FloatArray:
        """What the heads say at each token taken in, [tokens, width of the readout]."""
        neurons = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending.clear()
        parts = []
        for start in range(0, len(neurons), _ROWS):
            part = neurons[start : start + _ROWS]
            self._pool(part, self._reader.pooled(len(part)))
            parts.append(self._reader.rows())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _pool(self, neurons: FloatArray, pooled: FloatArray) -> None:
        """Write what the heads read at each of the next tokens, both [tokens, width]."""
        if self._aggregation is not None:
            rows, pooled[:] = self._aggregation.fold(self._rows, neurons)
            self._rows = np.concatenate([self._rows, rows])[-self._aggregation.span :]
        elif self._pools_mean:
            for row, mean in zip(neurons, pooled, strict=True):
                self._sum += row
                self._count += 1
                np.divide(self._sum, self._count, out=mean, casting="same_kind")
        else:
            pooled[:] = neurons
