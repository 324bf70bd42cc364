"""Run windows of texts, and the spans that they have, on a backend, in batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from siren_runtime.backends.base import Backend, LeavingBackend, SpansBackend
from siren_runtime.backends.batching import micro_batches, right_pad
from siren_runtime.backends.exits import Exits
from siren_runtime.backends.outputs import (
    BoolArray,
    DoubleArray,
    FloatArray,
    Outputs,
    TokenArray,
    named_values,
    no_verdict,
    not_finite,
)
from siren_runtime.backends.promising import promising
from siren_runtime.backends.readout import Readout
from siren_runtime.bundle.graphs import SCORE
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.errors import BackendError
from siren_runtime.text.deadline import Check, Deadline
from siren_runtime.text.reading import Window
from siren_runtime.text.spans import Cut
from siren_runtime.text.tokenizer import Tokenizer

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Scored:
    """What the engine makes of the tokens of one window.

    Attributes:
        row: float32 [width], each head's score and probabilities at the bundle's temperatures, as
            `siren_runtime.backends.readout` has them, finite.
        features: float32 [n_features], what the primary head read.
        precise: `row` in float64, which tells apart what float32 rounds to 1.
        spans: the same of each of `cuts`, the window's spans that were read, float64 [spans,
            width].
        exit: the blocks that were run, where an exit decided; there are no features then.
    """

    row: FloatArray
    features: FloatArray
    precise: DoubleArray
    spans: DoubleArray
    cuts: Sequence[Cut] = ()
    exit: int | None = None

    @property
    def score(self) -> float:
        """The primary head's probability of harm, 0 to 1."""
        return float(self.row[0])


@dataclass(frozen=True)
class WindowRun:
    """Runs the windows of one bundle's texts on a backend."""

    backend: Backend
    tokenizer: Tokenizer
    manifest: Manifest
    readout: Readout

    def of(
        self, windows: Mapping[_Key, Window], token_budget: int | None, check: Check
    ) -> dict[_Key, Scored | BackendError]:
        """Score windows and their spans; arguments and errors as `Scorer.run`.

        A decoder's streaming graph gives the mean of each span. An encoder's spans are read by
        themselves, as texts: of those whose means the pass over their window gives the promising
        ones, and elsewhere all.
        """
        if not any(window.cuts for window in windows.values()):
            return self._in_batches(windows, token_budget, check)
        if not isinstance(self.backend, SpansBackend) or not self.manifest.head.pools_mean:
            plain = {(key, 0, 0): replace(window, cuts=[]) for key, window in windows.items()}
            alone = self._in_batches(plain | self._alone(windows), token_budget, check)
            return {
                key: _with_spans(alone[key, 0, 0], windows[key].cuts, alone, key) for key in windows
            }
        scored = self._in_batches(windows, token_budget, check)
        if self.backend.reads_amid:
            return scored
        columns = self.readout.promising_columns
        chosen = {
            key: replace(
                windows[key],
                cuts=promising(one.cuts, one.spans[:, columns], len(windows[key].ids)),
            )
            for key, one in scored.items()
            if isinstance(one, Scored)
        }
        alone = self._in_batches(self._alone(chosen), token_budget, check, "engine runs over spans")
        return {
            key: _with_spans(one, chosen[key].cuts, alone, key) if key in chosen else one
            for key, one in scored.items()
        }

    def _alone(self, windows: Mapping[_Key, Window]) -> dict[tuple[_Key, int, int], Window]:
        """The spans of windows as texts of their own, each by its window, its first token and the
        one behind its last: a sentence may be a span of several sizes.
        """
        parts = {
            (key, c.start, c.stop): window.ids[c.start : c.stop]
            for key, window in windows.items()
            for c in window.cuts
        }
        return {part: Window(self.tokenizer.with_special(ids)) for part, ids in parts.items()}

    def apart(self, parts: Sequence[list[int]], deadline: Deadline) -> DoubleArray:
        """Score parts of a text as texts of their own; each is its ids without special tokens.

        Returns:
            What all heads make of each, as `Scored.precise`, float64 [parts, width].

        Raises:
            BackendError: the engine failed, or gave what is not finite.
            InterruptedCall: the deadline passed between two engine runs.
        """
        windows = {n: Window(self.tokenizer.with_special(ids)) for n, ids in enumerate(parts)}
        scored = self._in_batches(windows, None, deadline.check)
        return np.stack([_good(scored[n]).precise for n in windows])

    def _in_batches(
        self,
        windows: Mapping[_Key, Window],
        token_budget: int | None,
        check: Check,
        runs: str = "engine runs",
    ) -> dict[_Key, Scored | BackendError]:
        batches = [*self._batches(windows, token_budget or self.backend.token_budget)]
        results: dict[_Key, Scored | BackendError] = {}
        for done, batch in enumerate(batches):
            when = f"after {done} of {len(batches)} {runs}"
            check(when)
            results |= self._one_batch({key: windows[key] for key in batch}, check, when)
        return results

    def _batches(self, windows: Mapping[_Key, Window], token_budget: int) -> Iterator[list[_Key]]:
        """Which windows run together; those with spans apart, where others may leave."""
        spanned = any(window.cuts for window in windows.values())
        may_leave = spanned and isinstance(self.backend, LeavingBackend)
        groups: dict[bool, list[_Key]] = {}
        for key, window in windows.items():
            groups.setdefault(may_leave and bool(window.cuts), []).append(key)
        for keys in groups.values():
            for batch in micro_batches([len(windows[key].ids) for key in keys], token_budget):
                yield [keys[i] for i in batch]

    def _one_batch(
        self, batch: Mapping[_Key, Window], check: Check, when: str
    ) -> dict[_Key, Scored | BackendError]:
        """Score a batch; if it fails, each window by itself."""
        try:
            early = any(window.early for window in batch.values())
            if early and isinstance(self.backend, LeavingBackend):
                return self._leaving(self.backend, batch)
            return self._read(batch, *self._outputs([*batch.values()]))
        except BackendError as error:
            if len(batch) == 1:
                return dict.fromkeys(batch, error)
            results: dict[_Key, Scored | BackendError] = {}
            for key, window in batch.items():
                check(when)
                results |= self._one_batch({key: window}, check, when)
            return results

    def _leaving(
        self, backend: LeavingBackend, batch: Mapping[_Key, Window]
    ) -> dict[_Key, Scored | BackendError]:
        """Score a batch, of which the windows that an exit decides on are not run further."""
        exits, keys = Exits(backend.cascade), [*batch]
        early = np.array([window.early for window in batch.values()])
        results: dict[_Key, Scored | BackendError] = {}

        def leave(number: int, rows: TokenArray, scores: FloatArray) -> BoolArray:
            decided = exits.decide(number, scores)
            leaves: BoolArray = early[rows] & np.isfinite(decided)
            for row, score in zip(rows[leaves].tolist(), decided[leaves], strict=True):
                results[keys[row]] = _decided(score, backend.cascade.exits[number].depth)
            return leaves

        tokens = right_pad([window.ids for window in batch.values()])
        rows, outputs = backend.run_leaving(*tokens, leave)
        if outputs is not None:
            rest = {keys[row]: batch[keys[row]] for row in rows.tolist()}
            results |= self._read(rest, outputs, None)
        return results

    def _read(
        self, batch: Mapping[_Key, Window], outputs: Outputs, spans: Outputs | None
    ) -> dict[_Key, Scored | BackendError]:
        """What the engine's outputs for a batch, and for its spans, say of each window."""
        rows, precise = self.readout.rows(outputs), self.readout.precise(outputs)
        unusable = not_finite({**named_values(outputs), SCORE: rows[:, 0]})
        of_spans = np.zeros((0, self.readout.width))
        unusable_spans: dict[int, str] = {}
        if spans is not None:
            of_spans = self.readout.precise(spans)
            unusable_spans = not_finite({**named_values(spans), SCORE: of_spans[:, 0]})
        results: dict[_Key, Scored | BackendError] = {}
        first = 0
        for row, (key, window) in enumerate(batch.items()):
            mine = range(first, first + len(window.cuts))
            first = mine.stop
            wrong = [unusable[row]] if row in unusable else []
            wrong += [unusable_spans[span] for span in mine if span in unusable_spans]
            found = rows[row], outputs.features[row], precise[row], of_spans[mine], window.cuts
            results[key] = no_verdict(wrong[0]) if wrong else Scored(*found)
        return results

    def _outputs(self, windows: Sequence[Window]) -> tuple[Outputs, Outputs | None]:
        """What the engine gives for windows, and for their spans in one row."""
        tokens = right_pad([window.ids for window in windows])
        cuts = [(row, c.start, c.stop) for row, w in enumerate(windows) for c in w.cuts]
        if cuts and isinstance(self.backend, SpansBackend):
            return self.backend.run_spans(*tokens, cuts)
        return self.backend.run(*tokens), None


def _decided(score: np.float32, depth: int) -> Scored:
    """What an exit's decision is; guards with exits have one head and no categories."""
    row = np.array([score], np.float32)
    return Scored(row, row[:0], row.astype(np.float64), np.zeros((0, 1)), exit=depth)


def _good(scored: Scored | BackendError) -> Scored:
    if isinstance(scored, BackendError):
        raise scored
    return scored


def _with_spans(
    window: Scored | BackendError,
    cuts: Sequence[Cut],
    alone: Mapping[tuple[_Key, int, int], Scored | BackendError],
    key: _Key,
) -> Scored | BackendError:
    """A window's score and those of its spans, which were read by themselves; one that has none
    leaves no verdict on the window.
    """
    if isinstance(window, BackendError):
        return window
    rows = [np.zeros((0, len(window.precise)))]
    for cut in cuts:
        one = alone[key, cut.start, cut.stop]
        if isinstance(one, BackendError):
            return one
        rows.append(one.precise[None])
    return replace(window, spans=np.concatenate(rows), cuts=cuts)
