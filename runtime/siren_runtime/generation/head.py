"""The head of a grafted generator: pooled neurons in, scores out."""

from pathlib import Path

import numpy as np

from siren_runtime.backends.onnxruntime.failures import engine_failures
from siren_runtime.backends.onnxruntime.providers import import_onnxruntime
from siren_runtime.backends.outputs import FloatArray, no_verdict
from siren_runtime.backends.process import keep_in_children
from siren_runtime.bundle.graphs import POOLED, SCORE, TensorSpec, head_graph, signature
from siren_runtime.bundle.heads import PRIMARY_HEAD, HeadSpec
from siren_runtime.errors import BundleError

_DTYPES = {"tensor(float)": "float32"}


class HeadEngine:
    """head.onnx on one CPU thread. Threads may share it."""

    def __init__(self, model: bytes, path: Path, spec: HeadSpec) -> None:
        """Open the head's graph, whose bytes were checked.

        Raises:
            BackendError: ONNX Runtime cannot load it.
            BundleError: its inputs and outputs are not those of the head in guard.json.
        """
        self.spec = spec
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a second thread would spin beside the generator's
        options.log_severity_level = 4
        with engine_failures(lambda error: f"{path}: ONNX Runtime cannot load the head: {error}"):
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        keep_in_children(self._session)
        contract = head_graph({PRIMARY_HEAD: spec}, spec.features)
        for found, expected in (
            (self._session.get_inputs(), contract.inputs),
            (self._session.get_outputs(), contract.outputs),
        ):
            specs = [TensorSpec(v.name, _DTYPES.get(v.type, v.type), v.shape) for v in found]
            if signature(specs) != signature(expected):
                raise BundleError(
                    f"{path}: has {signature(specs)}, the head of guard.json {signature(expected)}"
                )

    def scores(self, pooled: FloatArray) -> list[float]:
        """The score of each row of pooled neurons, float32 [rows, n_features].

        Raises:
            BackendError: a neuron or a score is not finite, or the engine failed.
        """
        if not np.isfinite(pooled).all():  # a head may make a number of them, which says nothing
            raise no_verdict("neurons")
        with engine_failures(lambda error: f"ONNX Runtime failed in the head: {error}"):
            (scores,) = self._session.run([SCORE], {POOLED: pooled})
        if not np.isfinite(scores).all():
            raise no_verdict("score")
        values: list[float] = scores.tolist()
        return values
