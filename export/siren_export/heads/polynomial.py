"""A polynomial head (TPC, arXiv 2509.26238): harm by a sum of terms of rising order.

x          = (features - mean) / scale
logit[1]   = bias + weight x
logit[n]   = logit[n-1] + sum over r of lambda[n,r] (u[n,r] x)^n
score      = sigmoid(logit[K])

Every order's logit comes out at once. In float32 at every precision.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siren_export.graph.builder import FLOAT, GraphBuilder
from siren_runtime.bundle.graphs import (
    GRADIENTS,
    PAIR_DIRECTIONS,
    PAIR_FACTORS,
    STANDARDIZED,
    VALUE,
)
from siren_runtime.bundle.heads import HeadSpec

from .selected import SelectedMeans

KIND = "polynomial"
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Term:
    """What an order adds: `factors` float32 [rank], `directions` float32 [rank, n_features]."""

    factors: FloatArray
    directions: FloatArray


@dataclass(frozen=True, eq=False)
class PolynomialHead(SelectedMeans):
    """A `Head`. `layers` ascend; `terms` are of order 2, 3 and so on.

    `mean` and `scale`, float32 [n_features], standardize the features; `weight` float32
    [n_features] and `bias` are the linear term.
    """

    mean: FloatArray
    scale: FloatArray
    weight: FloatArray
    bias: float
    terms: tuple[Term, ...]

    @property
    def orders(self) -> int:
        """The highest order."""
        return 1 + len(self.terms)

    @property
    def spec(self) -> HeadSpec:
        """As `Head.spec`."""
        return HeadSpec(
            kind=KIND,
            pooling=self.pooling,
            layers=[selection.layer for selection in self.layers],
            features=self.weight.size,
            classes=self.orders,
            activation="orders",
            rank=self.terms[0].factors.size if self.terms else 0,
        )

    @property
    def parameters(self) -> int:
        """As `Head.parameters`."""
        return self.weight.size + sum(term.directions.size for term in self.terms)

    def classify(self, g: GraphBuilder, pooled: ir.Value) -> tuple[ir.Value, ir.Value]:
        """As `Head.classify`; the logits are those of each order, ascending."""
        with g.scope("head"):
            weights = g.table("polynomial/layer_weights", self.layer_weights)
            x = self._standardized(g, g.op("Mul", pooled, weights))
            logits = [self._linear(g, x)]
            for order, term in enumerate(self.terms, start=2):
                directions = g.table(f"order.{order}/directions", term.directions)
                powers, _ = self._powers(g, x, order, directions)
                logits.append(g.op("Add", logits[-1], self._weighed(g, powers, order, term)))
            last = g.op("Squeeze", g.op("Sigmoid", logits[-1]), g.const([1]))
            return last, g.op("Concat", *logits, axis=1)

    def explain(
        self, g: GraphBuilder, features: ir.Value, direction: ir.Value
    ) -> dict[str, ir.Value]:
        """As `Head.explain`. A term counts in the logits of its own and every higher order."""
        with g.scope("head"):
            x = self._standardized(g, features)
            counted = np.tril(np.ones((self.orders, self.orders), np.float32))  # [logit, term]
            counts = g.op("Gemm", direction, g.table("terms_of_logits", counted))
            shares = [g.op("Gather", counts, g.const([n]), axis=1) for n in range(self.orders)]
            value = g.op("Mul", shares[0], self._linear(g, x))
            row = g.table("polynomial/linear_row", self.weight[None])
            gradient = g.op("Mul", shares[0], row)
            pairs = {}
            for order, term in enumerate(self.terms, start=2):
                directions = g.table(f"order.{order}/directions", term.directions)
                powers, slopes = self._powers(g, x, order, directions)
                share = shares[order - 1]
                own = g.op("Mul", share, self._weighed(g, powers, order, term))
                value = g.op("Add", value, own)
                factors = g.table(f"order.{order}/factors_row", term.factors[None])
                back = g.op("Gemm", g.op("Mul", slopes, factors), directions)
                gradient = g.op("Add", gradient, g.op("Mul", share, back))
                if order == 2:
                    pairs = {STANDARDIZED: x, PAIR_FACTORS: factors, PAIR_DIRECTIONS: directions}
            scaled = g.op("Div", gradient, g.table("polynomial/divisors", self.scale))
            return {VALUE: g.op("Squeeze", value, g.const([1])), GRADIENTS: scaled, **pairs}

    def _standardized(self, g: GraphBuilder, features: ir.Value) -> ir.Value:
        centred = g.op("Sub", features, g.table("polynomial/mean", self.mean))
        return g.op("Div", centred, g.table("polynomial/scale", self.scale))

    def _linear(self, g: GraphBuilder, x: ir.Value) -> ir.Value:
        """The linear term [batch, 1]."""
        weight = g.table("polynomial/weight", np.ascontiguousarray(self.weight[:, None]))
        return g.op(
            "Gemm", x, weight, g.table("polynomial/bias", np.array([self.bias], np.float32))
        )

    def _powers(
        self, g: GraphBuilder, x: ir.Value, order: int, directions: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """(u x)^order [batch, rank], and its slope, order (u x)^(order - 1)."""
        z = g.op("Gemm", x, directions, transB=1)
        power = z
        for _ in range(order - 2):
            power = g.op("Mul", power, z)
        return g.op("Mul", power, z), g.op("Mul", power, g.const(float(order), FLOAT))

    def _weighed(self, g: GraphBuilder, powers: ir.Value, order: int, term: Term) -> ir.Value:
        """The term [batch, 1]."""
        return g.op("Gemm", powers, g.table(f"order.{order}/factors", term.factors[:, None].copy()))
