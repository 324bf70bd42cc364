"""Run a bundle's score graph in ONNX Runtime, on the CPU or through a GPU provider."""

from collections.abc import Sequence
from typing import Any

from siren_runtime.backends.outputs import Outputs, TokenArray
from siren_runtime.backends.process import OpeningProcess
from siren_runtime.bundle.graphs import ATTENTION_MASK, INPUT_IDS, names, score_graph
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError

from .failures import EngineFailures
from .providers import Provider
from .session import open_session, token_budget


class OnnxRuntimeBackend:
    """A session over score.onnx. ONNX Runtime lets threads share one."""

    def __init__(
        self,
        bundle: Bundle,
        providers: Sequence[Provider],
        *,
        strict: bool,
        threads: int | None = None,
        session_options: Any = None,
    ) -> None:
        """Open the session; `strict` refuses a provider that ONNX Runtime lists but cannot start.

        Raises:
            BackendError, BundleError, InputError: as `open_backend`.
        """
        self._session, self.name = open_session(
            bundle,
            "score",
            providers,
            strict=strict,
            threads=threads,
            session_options=session_options,
        )
        self._process = OpeningProcess()
        self.token_budget = token_budget(self.name)
        self._outputs = score_graph(bundle.manifest.heads).outputs

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded `input_ids` [batch, sequence]; the mask is 1 on real tokens.

        Raises:
            BackendError: ONNX Runtime failed or gave outputs of another shape.
        """
        self._process.check()
        batch, sequence = input_ids.shape
        feed = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        with EngineFailures(
            lambda error: (
                f"ONNX Runtime failed on a batch of {batch} texts by {sequence} tokens: {error}"
            )
        ):
            values = self._session.run(names(self._outputs), feed)
        for spec, value in zip(self._outputs, values, strict=True):
            expected = (batch, *spec.shape[1:])
            if value.shape != expected:
                raise BackendError(
                    f"the graph's output {spec.name!r} has shape {value.shape}, expected "
                    f"{expected}; export the bundle again"
                )
        return Outputs.of(values)
