"""Run the graph that gives a head's gradients, in ONNX Runtime on the CPU."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from siren_runtime.backends.outputs import DoubleArray, FloatArray
from siren_runtime.bundle.graphs import (
    DIRECTION,
    FEATURES,
    GRADIENTS,
    LAYER_WEIGHTS,
    NEURONS,
    PAIR_DIRECTIONS,
    PAIR_FACTORS,
    STANDARDIZED,
    VALUE,
    explain_name,
)
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BundleError

from .failures import EngineFailures
from .session import CPU, open_session


@dataclass(frozen=True)
class Neurons:
    """What the features of a head are.

    Attributes:
        blocks, channels: int64 [n_features], where each is.
        places: int64 [n_features], where it stands among the neurons that are pooled together.
        weights: float32 [n_features], the factor of its block.
    """

    blocks: npt.NDArray[np.int64]
    channels: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    weights: FloatArray


class HeadGradients:
    """A session over a head's explain graph."""

    def __init__(self, bundle: Bundle, head: str, threads: int | None = None) -> None:
        """Open it.

        Raises:
            BundleError: the bundle has no such graph, or it is damaged.
            BackendError: ONNX Runtime cannot open it.
        """
        name = explain_name(head)
        if name not in bundle.manifest.graphs:
            raise BundleError(
                f"{bundle.path}: has no graph {name!r}, with which scores are explained; export "
                "the bundle again"
            )
        self._session, _ = open_session(bundle, name, replace(CPU, threads=threads))
        self._spec = bundle.manifest.heads[head]
        shape = 1, self._spec.features
        found = self._run(
            [NEURONS, LAYER_WEIGHTS], np.zeros(shape, np.float32), 0 * self.one_hot(0)
        )
        (blocks, channels, places), weights = found[0].T, found[1]
        self.neurons = Neurons(blocks, channels, places, weights)

    def one_hot(self, place: int) -> FloatArray:
        """The direction of one logit, float32 [classes]."""
        direction = np.zeros(self._spec.classes, np.float32)
        direction[place] = 1
        return direction

    def __call__(
        self, features: FloatArray, direction: FloatArray
    ) -> tuple[DoubleArray, DoubleArray]:
        """The logits along a direction, and their gradients.

        Args:
            features: [batch, n_features].
            direction: [classes], the factor of each logit.

        Returns:
            Float64 [batch] and [batch, n_features].

        Raises:
            BackendError: ONNX Runtime failed.
        """
        value, gradients = self._run([VALUE, GRADIENTS], features, direction)
        return value.astype(np.float64), gradients.astype(np.float64)

    def second_order(self, features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What the term of second order is made of, of a head whose spec has a rank.

        Args:
            features: [batch, n_features].

        Returns:
            The standardized features, float32 [batch, n_features]; the factors [rank] and the
            directions [rank, n_features].

        Raises:
            BackendError: ONNX Runtime failed.
        """
        wanted = [STANDARDIZED, PAIR_FACTORS, PAIR_DIRECTIONS]
        standardized, factors, directions = self._run(wanted, features, 0 * self.one_hot(0))
        return standardized, factors[0], directions

    def _run(
        self, wanted: list[str], features: FloatArray, direction: FloatArray
    ) -> list[FloatArray]:
        directions = np.broadcast_to(direction, (len(features), len(direction)))
        feed = {FEATURES: features, DIRECTION: np.ascontiguousarray(directions)}
        with EngineFailures(
            lambda error: f"ONNX Runtime failed on the gradients of {len(features)} rows: {error}"
        ):
            values: list[FloatArray] = self._session.run(wanted, feed)
        return values
