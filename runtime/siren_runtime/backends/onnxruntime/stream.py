"""Run a bundle's streaming graph and its heads in ONNX Runtime."""

from collections.abc import Sequence

from siren_runtime.backends.base import stream_inputs
from siren_runtime.backends.outputs import (
    CacheArray,
    FloatArray,
    Outputs,
    StreamOutputs,
    TokenArray,
)
from siren_runtime.backends.process import OpeningProcess
from siren_runtime.bundle.graphs import head_graph, names, stream_graph
from siren_runtime.bundle.reader import Bundle

from .failures import EngineFailures
from .session import SessionRequest, open_sessions, run_head, token_budget

# Enough tokens for a matrix product to run at full speed; more would only take memory.
CHUNK_TOKENS = 256


class OnnxRuntimeStreamBackend:
    """Sessions over stream.onnx and head.onnx. ONNX Runtime lets threads share them."""

    def __init__(self, bundle: Bundle, asked: SessionRequest) -> None:
        """Open the sessions; arguments and errors as `OnnxRuntimeBackend`."""
        (self._session, self._head), self.name = open_sessions(
            bundle, ["stream", "head"], asked, on_one_thread=["head"]
        )
        self._process = OpeningProcess()
        self.token_budget = token_budget(self.name)
        manifest = bundle.manifest
        self.head_spec, self.neurons = manifest.head, manifest.pooled
        self.cache = manifest.stream_cache
        self._outputs = names(stream_graph(self.head_spec, self.neurons, self.cache).outputs)
        self._head_outputs = names(head_graph(manifest.heads, self.neurons).outputs)
        self.max_tokens = manifest.backbone.context_length or 0
        self.max_chunk = CHUNK_TOKENS

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
        self._process.check()
        batch, chunk = input_ids.shape
        feed = stream_inputs(self.cache, input_ids, past_lengths, past, feature_sum, feature_count)
        wanted = self._outputs if present else self._outputs[: -self.cache.buffers]
        with EngineFailures(
            lambda error: f"ONNX Runtime failed on {batch} streams by {chunk} tokens: {error}"
        ):
            score, logits, sums, *new = self._session.run(wanted, feed)
        return StreamOutputs(score, logits, sums, new)

    def head(self, pooled: FloatArray) -> Outputs:
        """Run the head alone, as `StreamBackend.head`."""
        self._process.check()
        return run_head(self._head, self._head_outputs, pooled)
