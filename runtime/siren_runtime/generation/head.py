"""The heads of a grafted generator: pooled neurons in, what each head says out."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from siren_runtime.backends.onnxruntime.failures import EngineFailures
from siren_runtime.backends.onnxruntime.providers import import_onnxruntime
from siren_runtime.backends.onnxruntime.session import tensor_specs
from siren_runtime.backends.outputs import FloatArray, Outputs, no_verdict
from siren_runtime.backends.process import keep_in_children
from siren_runtime.backends.readout import Readout
from siren_runtime.bundle.graphs import Contract, head_graph, signature
from siren_runtime.errors import BundleError

from .manifest import GraftManifest


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
        with EngineFailures(lambda error: f"{path}: ONNX Runtime cannot load the head: {error}"):
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        keep_in_children(self._session)
        contract = head_graph(manifest.heads, manifest.width)
        for values, specs in (
            (self._session.get_inputs(), contract.inputs),
            (self._session.get_outputs(), contract.outputs),
        ):
            found, expected = signature(tensor_specs(values)), signature(specs)
            if found != expected:
                raise BundleError(f"{path}: has {found}, the heads of guard.json {expected}")
        self._contract = contract

    def reader(self) -> "HeadReader":
        """What reads for one sequence."""
        return HeadReader(self._session, self._contract, self.readout)


class HeadReader:
    """Runs the heads' graph in memory that stays from one run to the next. It is of one thread."""

    def __init__(self, session: Any, contract: Contract, readout: Readout) -> None:
        """Bind memory for one row."""
        self._session, self._contract, self._readout = session, contract, readout
        self._failures = EngineFailures(lambda e: f"ONNX Runtime failed in the head: {e}")
        self._bind(1)

    def pooled(self, rows: int) -> FloatArray:
        """Where to put the pooled neurons that are read next, float32 [rows, width]."""
        if rows != len(self._pooled):
            self._bind(rows)
        return self._pooled

    def rows(self) -> FloatArray:
        """What the heads say of each row of the neurons put there.

        Returns:
            float32 [rows, width of the readout], a copy that later runs leave alone.

        Raises:
            BackendError: a neuron or a score is not finite, or the engine failed.
        """
        rows = self._readout.rows(self.run())
        if not _all_finite(rows):
            raise no_verdict("score")
        return rows

    def run(self) -> Outputs:
        """What the graph gives of the neurons put there, in memory that the next run overwrites.

        Raises:
            BackendError: a neuron is not finite, or the engine failed.
        """
        if not _all_finite(self._pooled):  # a head may make a number of them, which says nothing
            raise no_verdict("neurons")
        with self._failures:
            self._session.run_with_iobinding(self._binding)
        return self._outputs

    def _bind(self, rows: int) -> None:
        """Let the engine read and write memory of ours for so many rows."""
        self._binding = self._session.io_binding()
        self._pooled, *values = (
            np.full((rows, *map(int, spec.shape[1:])), np.nan, np.float32)
            for spec in (*self._contract.inputs, *self._contract.outputs)
        )
        self._outputs = Outputs.of(values)
        for bind, specs, arrays in (
            (self._binding.bind_input, self._contract.inputs, [self._pooled]),
            (self._binding.bind_output, self._contract.outputs, values),
        ):
            for spec, array in zip(specs, arrays, strict=True):
                bind(spec.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def _all_finite(values: FloatArray) -> bool:
    """Whether all are, [rows, columns]; in most cases one sum of squares says so."""
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())
