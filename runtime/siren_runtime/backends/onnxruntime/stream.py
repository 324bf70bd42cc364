"""Run a bundle's streaming graph and its head in ONNX Runtime."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from siren_runtime.backends.base import (
    CacheArray,
    CacheLayout,
    FloatArray,
    Outputs,
    StreamOutputs,
    TokenArray,
)
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError

from .session import Provider, open_session, token_budget

# Enough tokens for a matrix product to run at full speed; more would only take memory.
_CHUNK = 256


class OnnxRuntimeStreamBackend:
    """Sessions over stream.onnx and head.onnx. ONNX Runtime lets threads share them."""

    def __init__(
        self,
        bundle: Bundle,
        providers: Sequence[Provider],
        *,
        strict: bool,
        threads: int | None = None,
        session_options: Any = None,
    ) -> None:
        """Open the sessions; arguments and errors as `OnnxRuntimeBackend`."""
        options = {"strict": strict, "threads": threads, "session_options": session_options}
        self._session, self.name = open_session(bundle, "stream", providers, **options)
        self.token_budget = token_budget(self.name)
        self._head, _ = open_session(bundle, "head", providers, **options)
        graph = bundle.manifest.graphs["stream"]
        past = [spec for spec in graph.inputs if spec.name.startswith("past.")]
        _, heads, _, dim = past[0].shape
        self._past = [spec.name for spec in past]
        self._outputs = ["score", "logits", "feature_sums"]
        self._present = [name.replace("past.", "present.", 1) for name in self._past]
        self.layout = CacheLayout(len(past), int(heads), int(dim), np.dtype(past[0].dtype))
        self.features = bundle.manifest.head.features
        self.max_tokens = bundle.manifest.backbone.context_length or 0
        self.max_chunk = _CHUNK

    def step(
        self,
        input_ids: TokenArray,
        past_lengths: TokenArray,
        past: Sequence[CacheArray],
        feature_sum: FloatArray,
        feature_count: TokenArray,
        *,
        present: bool = True,
    ) -> StreamOutputs:
        """Run the streaming graph, as `StreamBackend.step`."""
        batch, chunk = input_ids.shape
        feed = {
            "input_ids": input_ids,
            "past_lengths": past_lengths,
            "feature_sum": feature_sum,
            "feature_count": feature_count,
            **dict(zip(self._past, past, strict=True)),
        }
        names = [*self._outputs, *(self._present if present else ())]
        try:
            score, logits, sums, *new = self._session.run(names, feed)
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed on {batch} streams by {chunk} tokens: {error}"
            ) from error
        return StreamOutputs(score, logits, sums, new)

    def head(self, pooled: FloatArray) -> Outputs:
        """Run the head alone, as `StreamBackend.head`."""
        try:
            values = self._head.run(["score", "logits", "features"], {"pooled": pooled})
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime failed on the head of {len(pooled)} rows: {error}"
            ) from error
        return Outputs(*values)
