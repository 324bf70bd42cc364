"""Run a bundle's score graph, or that of spans, in ONNX Runtime, on the CPU or through a GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from siren_runtime.backends.outputs import Outputs, TokenArray
from siren_runtime.backends.process import OpeningProcess
from siren_runtime.bundle.graphs import ATTENTION_MASK, INPUT_IDS, SPANS, names, score_graph
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError

from .failures import EngineFailures
from .session import SessionRequest, open_session, token_budget


class OnnxRuntimeBackend:
    """A session over score.onnx. ONNX Runtime lets threads share one."""

    graph = "score"

    def __init__(self, bundle: Bundle, asked: SessionRequest) -> None:
        """Open the session.

        Raises:
            BackendError, BundleError, InputError: as `open_backend`.
        """
        self._session, self.name = open_session(bundle, self.graph, asked)
        self._process = OpeningProcess()
        self.token_budget = token_budget(self.name)
        self._outputs = score_graph(bundle.manifest.heads).outputs

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded `input_ids` [batch, sequence]; the mask is 1 on real tokens.

        Raises:
            BackendError: ONNX Runtime failed or gave outputs of another shape.
        """
        return self._run(self._feed(input_ids, attention_mask), len(input_ids))

    def _feed(
        self, input_ids: TokenArray, attention_mask: TokenArray
    ) -> dict[str, npt.NDArray[Any]]:
        return {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}

    def _run(self, feed: Mapping[str, npt.NDArray[Any]], rows: int) -> Outputs:
        """What the graph gives, for so many rows."""
        self._process.check()
        batch, sequence = feed[INPUT_IDS].shape
        with EngineFailures(
            lambda error: (
                f"ONNX Runtime failed on a batch of {batch} texts by {sequence} tokens: {error}"
            )
        ):
            values = self._session.run(names(self._outputs), feed)
        for spec, value in zip(self._outputs, values, strict=True):
            expected = (rows, *spec.shape[1:])
            if value.shape != expected:
                raise BackendError(
                    f"the graph's output {spec.name!r} has shape {value.shape}, expected "
                    f"{expected}; export the bundle again"
                )
        return Outputs.of(values)


class OnnxRuntimeSpansBackend(OnnxRuntimeBackend):
    """A `SpansBackend`: a session over spans.onnx, to which a text is a span of all its tokens."""

    graph = SPANS
    reads_amid = False

    def run_spans(
        self,
        input_ids: TokenArray,
        attention_mask: TokenArray,
        spans: Sequence[tuple[int, int, int]],
    ) -> tuple[Outputs, Outputs]:
        """As `SpansBackend.run_spans`."""
        feed, batch = self._feed(input_ids, attention_mask), len(input_ids)
        count = 1 + int(np.bincount([row for row, _, _ in spans]).max())
        # Each text's whole first, then its spans; and the whole again where it has fewer.
        of_texts = feed[SPANS] = feed[SPANS].repeat(count, axis=1)
        places, filled = [], [1] * batch
        for row, start, stop in spans:
            of_texts[row, filled[row]] = 0
            of_texts[row, filled[row], start:stop] = 1
            places.append(row * count + filled[row])
            filled[row] += 1
        found = self._run(feed, batch * count)
        return found.rows(slice(None, None, count)), found.rows(np.array(places))

    def _feed(
        self, input_ids: TokenArray, attention_mask: TokenArray
    ) -> dict[str, npt.NDArray[Any]]:
        whole = attention_mask[:, None].astype(np.float32)
        return {**super()._feed(input_ids, attention_mask), SPANS: whole}
