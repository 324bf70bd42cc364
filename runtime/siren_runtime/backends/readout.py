"""What is read off a graph's logits: each head's score and probabilities, at its temperatures.

A readout is a row of numbers, which windows, spans and streams carry alike: of each head its score,
and behind it the probability of each of its categories, or of harm by each of its orders.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from siren_runtime.bundle.heads import HARMFUL, Decision, HeadSpec
from siren_runtime.text.passage import Span
from siren_runtime.text.spans import Cut

from .outputs import (
    DoubleArray,
    FloatArray,
    HeadOutputs,
    Outputs,
    StreamOutputs,
    no_verdict,
)


@dataclass(frozen=True)
class Column:
    """Where a head stands in a row: its score, and behind that its categories or orders."""

    score: int
    rest: slice


@dataclass(frozen=True)
class HighestSpan:
    """The span of `size` tokens with the highest score of a text.

    `span` is where it stands in the text, in characters. `category` is the one whose
    probability the score is, of a head whose categories have a span each; else "".
    """

    size: int
    score: float
    span: Span
    category: str = ""


@dataclass(frozen=True)
class HeadText:
    """What one head makes of a text.

    Attributes:
        score: that of the highest window.
        span: that window's part of the text as given, in characters; None for the whole text.
        categories: probabilities by the name of a category, each that of its highest window.
        spans: the highest of each size that there is, by size; of independent labels that of each.
        orders: probability of harm by each order, ascending, each that of its highest window.
        order_spans: where the window of each order stands, as `span`.
    """

    score: float
    span: Span | None
    categories: Mapping[str, float]
    spans: tuple[HighestSpan, ...] = ()
    orders: tuple[float, ...] = ()
    order_spans: tuple[Span | None, ...] = ()


class Deciding(Protocol):
    """What a manifest says of heads."""

    @property
    def heads(self) -> Mapping[str, HeadSpec]:
        """Heads by name, the primary one first."""

    def decision(self, name: str) -> Decision:
        """How the head of that name decides."""


class Readout:
    """Reads rows off the outputs of one bundle's graphs.

    Attributes:
        columns: where each head stands in a row, by name.
        width: of a row.
        smoothing: float32 [width], how much a token's row counts in the moving average of a
            stream's rows; None where no head is smoothed.
    """

    def __init__(self, manifest: Deciding) -> None:
        """Take how each head decides from the manifest."""
        self._heads = {
            name: (spec, manifest.decision(name)) for name, spec in manifest.heads.items()
        }
        self.columns: dict[str, Column] = {}
        self.width = 0
        for name, spec in manifest.heads.items():
            stop = self.width + 1 + len(spec.categories) + spec.orders
            self.columns[name] = Column(self.width, slice(self.width + 1, stop))
            self.width = stop
        self.smoothing = self._smoothing()

    def categories(self, name: str, row: npt.NDArray[Any]) -> dict[str, float]:
        """The probabilities of a head's categories in a row [width], by their names."""
        names = self._heads[name][0].categories
        own = row[self.columns[name].rest].tolist() if names else []
        return dict(zip(names, own, strict=True))

    @property
    def promising_columns(self) -> list[int]:
        """Where rows have what tells which spans are worth reading: what is held against
        thresholds of the heads that may decide by spans, the primary one and those with thresholds.
        """
        primary = next(iter(self._heads))
        return [
            column
            for name, (_, decision) in self._heads.items()
            if name == primary or decision.spans
            for column in self._judged_columns(name).values()
        ]

    def _judged_columns(self, name: str) -> dict[str, int]:
        """Where what is held against a threshold stands in a row: the score, by "", or each label's
        probability, by its name.
        """
        spec, column = self._heads[name][0], self.columns[name]
        if not spec.has_labels:
            return {"": column.score}
        return {label: column.rest.start + n for n, label in enumerate(spec.categories)}

    def highest_spans(
        self, name: str, scored: Iterable[tuple[Cut, npt.NDArray[Any]]]
    ) -> tuple[HighestSpan, ...]:
        """The highest of spans and their rows [width] by a head, of each size; of independent
        labels that of each label. They stand in the cleaned text.
        """
        columns = self._judged_columns(name)
        highest: dict[tuple[int, str], tuple[float, Span]] = {}
        for cut, row in scored:
            for category, column in columns.items():
                place = cut.size, category
                if place not in highest or row[column] > highest[place][0]:
                    highest[place] = float(row[column]), cut.span
        return tuple(
            HighestSpan(size, score, span, category)
            for (size, category), (score, span) in sorted(
                highest.items(), key=lambda one: one[0][0]
            )
        )

    def finite(self, outputs: Outputs) -> DoubleArray:
        """As `precise`, of outputs that must say something.

        Raises:
            BackendError: a number is not finite.
        """
        rows = self.precise(outputs)
        if not np.isfinite(rows).all():
            raise no_verdict("score of a span")
        return rows

    def orders(self, name: str, row: npt.NDArray[Any]) -> tuple[float, ...]:
        """The probability of harm by each order of a head in a row [width], ascending."""
        return (*row[self.columns[name].rest].tolist(),) if self._heads[name][0].orders else ()

    def _smoothing(self) -> FloatArray | None:
        weights = np.ones(self.width, np.float32)
        for name, (_, decision) in self._heads.items():
            column = self.columns[name]
            weights[column.score : column.rest.stop] = 2 / (decision.smoothing + 1)
        return weights if (weights < 1).any() else None

    def heads(self, row: npt.NDArray[Any]) -> dict[str, HeadText]:
        """What a row [width] says of each head."""
        return {
            name: HeadText(
                float(row[column.score]),
                None,
                self.categories(name, row),
                orders=(orders := self.orders(name, row)),
                order_spans=(None,) * len(orders),
            )
            for name, column in self.columns.items()
        }

    def of_stream(self, outputs: StreamOutputs) -> FloatArray:
        """Return float32 [batch, chunk, columns], the primary head's part of the rows; that is all
        of them where there is one head.
        """
        spec, decision = next(iter(self._heads.values()))
        rows: FloatArray = _columns(outputs, spec, decision, np.float32)
        return rows

    def rows(self, outputs: Outputs) -> FloatArray:
        """Return float32 [batch, width]. At a temperature of 1, scores of classes are the engine's.

        A score that is not finite stays so: it marks outputs that the engine did not write.
        """
        rows: FloatArray = self._read(outputs, np.float32)
        return rows

    def precise(self, outputs: Outputs) -> DoubleArray:
        """Return float64 [batch, width], of the logits alone, which tells apart what float32 rounds
        to 1; NaN where the engine's own score is not finite.
        """
        rows: DoubleArray = self._read(outputs, np.float64)
        return rows

    def _read(self, outputs: Outputs, dtype: Any) -> Any:
        columns = [
            _columns(head, spec, decision, dtype)
            for head, (spec, decision) in zip(outputs.heads, self._heads.values(), strict=True)
        ]
        return np.concatenate(columns, axis=-1)


def _columns(
    head: HeadOutputs | StreamOutputs, spec: HeadSpec, decision: Decision, dtype: Any
) -> Any:
    """A head's part of the rows, [..., 1 + categories].

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599): logits are divided by it before the
    softmax, or before the sigmoid, each label by its own.
    """
    plain = spec.activation == "softmax" and decision.temperature == 1.0 and dtype == np.float32
    if plain and not spec.categories and not spec.orders:
        return head.score[..., None]
    with np.errstate(invalid="ignore"):  # of logits that are not finite
        if spec.activation == "softmax":
            logits = head.logits.astype(dtype) / dtype(decision.temperature)
            shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
            score = shares[..., HARMFUL] / shares.sum(axis=-1)
            probabilities = shares / shares.sum(axis=-1, keepdims=True)
        elif spec.activation in ("orders", "logistic"):
            probabilities = _sigmoid(head.logits.astype(dtype) / dtype(decision.temperature), dtype)
            score = probabilities[..., -1]
        else:
            temperatures = [label.temperature for label in decision.labels] or [1.0]
            logits = head.logits.astype(dtype) / np.array(temperatures, dtype)
            probabilities = _sigmoid(logits, dtype)
            score = probabilities.max(axis=-1)
    if plain:
        score = head.score
    score = np.where(np.isfinite(head.score), score, head.score if dtype == np.float32 else np.nan)
    if not spec.categories and not spec.orders:
        return score[..., None]
    if spec.activation == "softmax":
        probabilities[..., HARMFUL] = score
    return np.concatenate([score[..., None], probabilities], axis=-1)


def _sigmoid(logits: Any, dtype: Any) -> Any:
    return np.exp(-np.logaddexp(dtype(0), -logits))
