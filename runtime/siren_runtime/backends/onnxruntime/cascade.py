"""The segments of a guard with exits in ONNX Runtime: rows of a batch leave between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from siren_runtime.backends.base import Leave
from siren_runtime.backends.outputs import BoolArray, FloatArray, Outputs, TokenArray
from siren_runtime.backends.process import OpeningProcess
from siren_runtime.bundle.graphs import ATTENTION_MASK, INPUT_IDS, names
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError

from .failures import EngineFailures
from .session import SessionRequest, open_sessions, token_budget


@dataclass(frozen=True)
class _Segment:
    session: Any
    inputs: Sequence[str]
    outputs: Sequence[str]
    shapes: Sequence[Sequence[int | str]]


class CascadeBackend:
    """A `LeavingBackend` over the segments of the score graph.

    ONNX Runtime lets threads share it. It holds every weight once, as score.onnx does.
    """

    def __init__(self, bundle: Bundle, asked: SessionRequest) -> None:
        """Open the segments, as `OnnxRuntimeBackend` the whole graph; the bundle has exits."""
        cascade = bundle.manifest.cascade
        assert cascade is not None
        sessions, self.name = open_sessions(bundle, cascade.graphs, asked, in_turn=True)
        self.cascade = cascade
        self.token_budget = token_budget(self.name)
        self._process = OpeningProcess()
        specs = [bundle.manifest.graphs[name] for name in cascade.graphs]
        self._segments = [
            _Segment(
                session, names(s.inputs), names(s.outputs), [out.shape[1:] for out in s.outputs]
            )
            for session, s in zip(sessions, specs, strict=True)
        ]

        # Behind each exit: what the segments after it read, and the tokens, which tell the sizes.
        self._read_later = [
            {INPUT_IDS}.union(*(later.inputs for later in self._segments[number + 1 :]))
            for number in range(len(self._segments) - 1)
        ]

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded texts by the whole guard, as `Backend.run`."""
        _, outputs = self.run_leaving(input_ids, attention_mask, _stay)
        assert outputs is not None
        return outputs

    def run_leaving(
        self, input_ids: TokenArray, attention_mask: TokenArray, leave: Leave
    ) -> tuple[TokenArray, Outputs | None]:
        """Score right-padded texts, of which rows may leave, as `LeavingBackend.run_leaving`."""
        self._process.check()
        rows = np.arange(len(input_ids))
        kept: dict[str, npt.NDArray[Any]] = {
            INPUT_IDS: input_ids,
            ATTENTION_MASK: attention_mask,
        }
        *exits, last = self._segments
        for number, segment in enumerate(exits):
            score, *states = _run(segment, kept)
            stays = ~leave(number, rows, score)
            if not stays.any():
                return rows[stays], None
            kept |= dict(zip(segment.outputs[1:], states, strict=True))
            kept = {name: kept[name] for name in kept.keys() & self._read_later[number]}
            if not stays.all():
                rows = rows[stays]
                kept = {name: value[stays] for name, value in kept.items()}
        return rows, Outputs.of(_run(last, kept))


def _stay(number: int, rows: TokenArray, score: FloatArray) -> BoolArray:
    return np.zeros(len(rows), np.bool_)


def _run(segment: _Segment, kept: dict[str, npt.NDArray[Any]]) -> list[FloatArray]:
    batch, sequence = kept[INPUT_IDS].shape
    with EngineFailures(
        lambda error: (
            f"ONNX Runtime failed on a batch of {batch} texts by {sequence} tokens: {error}"
        )
    ):
        values: list[FloatArray] = segment.session.run(
            segment.outputs, {name: kept[name] for name in segment.inputs}
        )
    sizes = {"sequence": sequence}
    for name, shape, value in zip(segment.outputs, segment.shapes, values, strict=True):
        expected = batch, *(size if isinstance(size, int) else sizes[size] for size in shape)
        if value.shape != expected:
            raise BackendError(
                f"the graph's output {name!r} has shape {value.shape}, expected {expected}; "
                "export the bundle again"
            )
    return values
