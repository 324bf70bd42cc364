"""The Agent-SIREN head: a logistic regression on the last token's state behind some block.

state  = the residual stream behind a block, without the final norm, at the last real token
logit  = weight state + bias

Several blocks' states one after another make the head by which features are extracted.
score  = sigmoid(logit)

In float32 at every precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siren_export.graph.builder import GraphBuilder
from siren_export.graph.taps import Taps
from siren_runtime.bundle.graphs import GRADIENTS, VALUE
from siren_runtime.bundle.heads import HeadSpec

KIND = "trajectory"


@dataclass(frozen=True, eq=False)
class TrajectoryHead:
    """A `Head`. `layers` are 0-based blocks and ascend; `weight` float32 [layers * hidden]."""

    layers: tuple[int, ...]
    weight: NDArray[np.float32]
    bias: float

    @property
    def spec(self) -> HeadSpec:
        """As `Head.spec`."""
        return HeadSpec(
            kind=KIND,
            pooling="residual_last",
            layers=list(self.layers),
            features=self.weight.size,
            classes=1,
            activation="logistic",
        )

    @property
    def taps(self) -> Taps:
        """As `Head.taps`: all channels."""
        channels = np.arange(self.hidden_size, dtype=np.int64)
        return Taps("residual", dict.fromkeys(self.layers, channels), final_norm=False)

    @property
    def hidden_size(self) -> int:
        """The channels of a state."""
        return self.weight.size // len(self.layers)

    @property
    def parameters(self) -> int:
        """As `Head.parameters`."""
        return self.weight.size

    @property
    def layer_weights(self) -> NDArray[np.float32]:
        """As `Head.layer_weights`."""
        return np.ones(self.weight.size, np.float32)

    def pool(
        self, g: GraphBuilder, states: Mapping[int, ir.Value], attention_mask: ir.Value
    ) -> ir.Value:
        """As `Head.pool`: the last real token of each right-padded row."""
        with g.scope("pooling"):
            tokens = g.op("ReduceSum", attention_mask, g.const([1]), name="tokens", keepdims=1)
            last = g.op("Sub", tokens, g.const(1))
            found = [g.op("GatherND", states[n], last, batch_dims=1) for n in self.layers]
            return found[0] if len(found) == 1 else g.op("Concat", *found, axis=1)

    def pool_prefixes(
        self,
        g: GraphBuilder,
        states: Mapping[int, ir.Value],
        feature_sum: ir.Value,
        feature_count: ir.Value,
    ) -> tuple[ir.Value, ir.Value]:
        """As `Head.pool_prefixes`: each token's own state, which it leaves to none."""
        found = [states[n] for n in self.layers]
        state = found[0] if len(found) == 1 else g.op("Concat", *found, axis=2)
        return state, state

    def features(self, g: GraphBuilder, pooled: ir.Value) -> ir.Value:
        """As `Head.features`: the state itself."""
        return g.op("Identity", pooled)

    def classify(self, g: GraphBuilder, pooled: ir.Value) -> tuple[ir.Value, ir.Value]:
        """As `Head.classify`."""
        with g.scope("head"):
            weight = g.table("weight", np.ascontiguousarray(self.weight[:, None]))
            logit = g.op("Gemm", pooled, weight, g.table("bias", np.array([self.bias], np.float32)))
            return g.op("Squeeze", g.op("Sigmoid", logit), g.const([1])), logit

    def explain(
        self, g: GraphBuilder, features: ir.Value, direction: ir.Value
    ) -> dict[str, ir.Value]:
        """As `Head.explain`."""
        with g.scope("head"):
            _, logit = self.classify(g, features)
            row = g.table("weight_row", self.weight[None])
            value = g.op("Squeeze", g.op("Mul", logit, direction), g.const([1]))
            return {VALUE: value, GRADIENTS: g.op("Mul", direction, row)}
