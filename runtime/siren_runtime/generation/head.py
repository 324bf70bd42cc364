"""The heads of a grafted generator: pooled neurons in, what each head says out."""

from pathlib import Path

import numpy as np

from siren_runtime.backends.onnxruntime.failures import engine_failures
from siren_runtime.backends.onnxruntime.providers import import_onnxruntime
from siren_runtime.backends.outputs import FloatArray, Outputs, no_verdict
from siren_runtime.backends.process import keep_in_children
from siren_runtime.backends.readout import Readout
from siren_runtime.bundle.graphs import POOLED, TensorSpec, head_graph, names, signature
from siren_runtime.errors import BundleError

from .manifest import GraftManifest

_DTYPES = {"tensor(float)": "float32"}


class HeadEngine:
    """head.onnx on one CPU thread. Threads may share it.

    Attributes:
        width: how many pooled numbers it reads.
        pools_mean: whether these are means over tokens, or the last token's.
        readout: says what stands where in the rows that it gives.
    """

    def __init__(self, model: bytes, path: Path, manifest: GraftManifest) -> None:
        """Open the heads' graph, whose bytes were checked.

        Raises:
            BackendError: ONNX Runtime cannot load it.
            BundleError: its inputs and outputs are not those of the heads in guard.json.
        """
        self.width, self.pools_mean = manifest.width, manifest.head.pools_mean
        self.readout = Readout(manifest)
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a second thread would spin beside the generator's
        options.log_severity_level = 4
        with engine_failures(lambda error: f"{path}: ONNX Runtime cannot load the head: {error}"):
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        keep_in_children(self._session)
        contract = head_graph(manifest.heads, manifest.width)
        for found, expected in (
            (self._session.get_inputs(), contract.inputs),
            (self._session.get_outputs(), contract.outputs),
        ):
            specs = [TensorSpec(v.name, _DTYPES.get(v.type, v.type), v.shape) for v in found]
            if signature(specs) != signature(expected):
                raise BundleError(
                    f"{path}: has {signature(specs)}, the heads of guard.json {signature(expected)}"
                )
        self._outputs = names(contract.outputs)

    def rows(self, pooled: FloatArray) -> FloatArray:
        """What the heads say of each row of pooled neurons, float32 [rows, width of the readout].

        Args:
            pooled: float32 [rows, width].

        Raises:
            BackendError: a neuron or a score is not finite, or the engine failed.
        """
        if not np.isfinite(pooled).all():  # a head may make a number of them, which says nothing
            raise no_verdict("neurons")
        with engine_failures(lambda error: f"ONNX Runtime failed in the head: {error}"):
            values = self._session.run(self._outputs, {POOLED: pooled})
        rows = self.readout.rows(Outputs.of(values))
        if not np.isfinite(rows).all():
            raise no_verdict("score")
        return rows
