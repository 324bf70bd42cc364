"""The SIREN head (arXiv 2604.18519): an MLP over the mean of selected channels of some layers.

pooled[l]  = mean over real tokens of states[l], the selected channels
features   = concat over l of layer_weight[l] * pooled[l]
score      = softmax(mlp(features))[harmful], or the largest of sigmoid(mlp(features))

A forecast head (StreamGuard, arXiv 2604.03962; AERIC, arXiv 2605.23974) is such an MLP with one
logit, or a linear map, and says how harmful what follows a prefix will be.

In float32 at every precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_export.graph.weights import computed
from siren_runtime.bundle.graphs import GRADIENTS, VALUE
from siren_runtime.bundle.heads import HARMFUL, Activation, HeadSpec

from .selected import SelectedMeans

# By how logits become probabilities.
KINDS: Mapping[Activation, str] = {"softmax": "mlp", "sigmoid": "mlp", "logistic": "forecast"}


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense layer of the MLP: `weight` float32 [out, in], `bias` float32 [out]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MlpHead(SelectedMeans):
    """A `Head`. `layers` ascend; `dense` has ReLU in between.

    Of a softmax class 1 is harm; of sigmoids each is a kind of harm; of "logistic" the one logit is
    of the harm of what comes. `labels` names the classes; it
    is empty where the artifact does not name them. `openai` is as `HeadSpec` has it.
    """

    dense: tuple[Dense, ...]
    labels: tuple[str, ...] = ()
    activation: Activation = "softmax"
    openai: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The number of logits."""
        return len(self.dense[-1].bias)

    @property
    def spec(self) -> HeadSpec:
        """As `Head.spec`."""
        return HeadSpec(
            kind=KINDS[self.activation],
            pooling=self.pooling,
            layers=[selection.layer for selection in self.layers],
            features=self.n_features,
            classes=self.classes,
            labels=list(self.labels),
            activation=self.activation,
            openai={key: list(names) for key, names in self.openai.items()},
        )

    @property
    def parameters(self) -> int:
        """As `Head.parameters`."""
        return sum(layer.weight.size for layer in self.dense)

    def classify(self, g: GraphBuilder, pooled: ir.Value) -> tuple[ir.Value, ir.Value]:
        """As `Head.classify`; the weights of layers are folded into the MLP's first matrix."""
        with g.scope("head"):
            return self._behind_first(g, self._linear(g, 0, pooled)[0])

    @property
    def projection(self) -> NDArray[np.float32]:
        """As `LinearFirst.projection`: the MLP's first matrix, the weights of layers included."""
        return _scaled(self.dense[0], self.layer_weights)

    def classify_projected(self, g: GraphBuilder, projected: ir.Value) -> tuple[ir.Value, ir.Value]:
        """As `LinearFirst.classify_projected`."""
        with g.scope("head"):
            bias = g.table("linear.0/bias", self.dense[0].bias)
            return self._behind_first(g, g.op("Add", projected, bias))

    def _behind_first(self, g: GraphBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Author score and logits, given what the first dense layer gives."""
        for i in range(1, len(self.dense)):
            x, _ = self._linear(g, i, g.op("Relu", x))
        if self.activation in ("sigmoid", "logistic"):
            labels = g.op("Sigmoid", x)
            return g.op("ReduceMax", labels, g.const([-1]), keepdims=0), x
        probabilities = g.op("Softmax", x, axis=-1)
        return g.op("Gather", probabilities, g.const(HARMFUL), axis=1), x

    def explain(
        self, g: GraphBuilder, features: ir.Value, direction: ir.Value
    ) -> dict[str, ir.Value]:
        """As `Head.explain`: back through the MLP, where its neurons are above zero."""
        with g.scope("head"):
            # The MLP's first matrix has the weights of layers; one of 0 hides its layer anyway.
            weights = np.where(self.layer_weights == 0, np.float32(1), self.layer_weights)
            divisors = g.table("divisors", weights)
            x = g.op("Div", features, divisors)
            matrices, open_neurons = [], []
            for i in range(len(self.dense)):
                if i > 0:
                    open_neurons.append(g.cast(g.op("Greater", x, g.const(0.0, FLOAT)), FLOAT))
                    x = g.op("Relu", x)
                x, matrix = self._linear(g, i, x)
                matrices.append(matrix)
            value = g.op("ReduceSum", g.op("Mul", x, direction), g.const([-1]), keepdims=0)
            gradient = direction
            for i in reversed(range(len(self.dense))):
                gradient = g.op("Gemm", gradient, matrices[i], transB=1)
                if i > 0:
                    gradient = g.op("Mul", gradient, open_neurons[i - 1])
            return {VALUE: value, GRADIENTS: g.op("Div", gradient, divisors)}

    def _linear(self, g: GraphBuilder, i: int, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Author a dense layer; return what it gives and its matrix."""
        layer = self.dense[i]
        scale = self.layer_weights if i == 0 else np.float32(1)
        matrix = computed(FLOAT, layer.weight.shape[::-1], partial(_scaled, layer, scale))
        with g.scope(f"linear.{i}"):
            weight = g.weight("weight", matrix)
            return g.op("Gemm", x, weight, g.table("bias", layer.bias)), weight


def _scaled(layer: Dense, scale: np.ndarray | np.float32) -> np.ndarray:
    """The matrix of a layer times the scale of each input, float32 [in, out]."""
    return np.ascontiguousarray((layer.weight * scale).T)
