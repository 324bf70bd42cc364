"""The verdict on a sequence that a model reads and writes, by the neurons of its own passes."""

from collections.abc import Sequence

import numpy as np

from siren_runtime.backends.outputs import FloatArray
from siren_runtime.backends.verdicts import HeadScore, categories_of
from siren_runtime.scoring.verdict import Judge
from siren_runtime.streaming.aggregation import Aggregation, moving_average
from siren_runtime.streaming.decision import Decisions, Rule
from siren_runtime.streaming.result import StreamResult

from .head import HeadEngine

_ROWS = 256  # that the head reads at once


class Watch:
    """Takes in the neurons of tokens and gives the verdict on all so far, as a stream does.

    Attributes:
        context: tokens in front that do not count.
        scores: of each token that a verdict was given on, those of the context included; the
            primary head's.
    """

    def __init__(
        self,
        head: HeadEngine,
        judge: Judge,
        aggregation: Aggregation | None,
        rules: Sequence[Rule],
        threshold: float | None,
    ) -> None:
        """Begin with no token.

        Args:
            threshold: the primary head's in this run; None is its own.
            aggregation: None is the mean over all tokens that count.
        """
        self._head, self._judge, self._aggregation = head, judge, aggregation
        self._threshold = threshold
        self._rows_read: FloatArray = np.zeros((0, head.readout.width), np.float32)
        self._decisions = Decisions(rules)
        self._pending: list[FloatArray] = []
        self.context, self._has_response = 0, False
        self.scores: list[float] = []
        self._forget()

    def _forget(self) -> None:
        """Forget the neurons so far."""
        self._sum = np.zeros(self._head.width, np.float64)
        self._count = 0
        self._rows = np.zeros((0, self._head.width), np.float32)
        self._average: FloatArray | None = None

    def add(self, neurons: FloatArray) -> None:
        """Take in the neurons of the next tokens, float32 [tokens, width].

        Nothing is computed yet: that costs next to nothing more for several tokens than for one.
        """
        self._pending.append(neurons)

    def begin_response(self, *, alone: bool) -> None:
        """What a verdict was given on is the prompt, and the rest its response.

        Args:
            alone: the prompt counts no more.
        """
        self._has_response = True
        if alone:
            self.context = len(self.scores)
            self._forget()

    def conclude(self) -> StreamResult:
        """The verdict on all tokens taken in.

        Raises:
            BackendError: a neuron or a score is not finite.
        """
        first = len(self.scores)
        neurons = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending.clear()
        self._rows_read = np.concatenate(
            [
                self._head.rows(self._pooled(neurons[start : start + _ROWS]))
                for start in range(0, len(neurons), _ROWS)
            ]
        )
        smoothing = self._head.readout.smoothing
        if smoothing is not None:
            self._rows_read = moving_average(self._average, self._rows_read, smoothing)
            self._average = self._rows_read[-1]
        self.scores += self._rows_read[:, 0].tolist()
        context = self.context if self.context < len(self.scores) else 0
        self._decisions.update(self.scores, context)
        heads = self._verdicts(self._rows_read[-1])
        primary = next(iter(heads.values()))
        categories, flagged = categories_of(heads.values())
        return StreamResult(
            score=primary.score,
            is_harmful=primary.is_harmful,
            threshold=primary.threshold,
            tokens=len(self.scores) - context,
            computed=len(self.scores) - first,
            rolled_back=0,
            slid=False,
            decisions=tuple(self._decisions.since(first)) if self._decisions.rules else (),
            tier=primary.tier,
            risk=primary.risk,
            categories=categories,
            flagged=flagged,
            heads=heads,
            as_response=primary.as_response,
        )

    def first_harmful(self) -> int | None:
        """Which of the tokens of the last verdict is harmful by the primary head, the first."""
        return next(
            (
                number
                for number, row in enumerate(self._rows_read)
                if next(iter(self._verdicts(row).values())).is_harmful
            ),
            None,
        )

    def _verdicts(self, row: FloatArray) -> dict[str, HeadScore]:
        """What the heads decide by a row of the readout."""
        rest = self._threshold, 0.0, self._has_response
        return self._judge.on_heads([self._head.readout.heads(row)], *rest)

    def _pooled(self, neurons: FloatArray) -> FloatArray:
        """What the heads read at each of the next tokens, [tokens, width]."""
        if self._aggregation is not None:
            rows, pooled = self._aggregation.fold(self._rows, neurons)
            self._rows = np.concatenate([self._rows, rows])[-self._aggregation.span :]
            return pooled
        if not self._head.pools_mean:
            return neurons
        sums = np.cumsum(neurons, axis=0, dtype=np.float64)
        sums += self._sum
        counts = np.arange(self._count + 1, self._count + len(sums) + 1)
        self._sum, self._count = sums[-1], self._count + len(sums)
        means: FloatArray = (sums / counts[:, None]).astype(np.float32)
        return means
