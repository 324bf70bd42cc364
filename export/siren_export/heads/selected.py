"""What heads have in common that read the mean of selected channels of some layers.

pooled[l]  = mean over real tokens of states[l], the selected channels
features   = concat over l of layer_weight[l] * pooled[l]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from siren_export.graph.builder import GraphBuilder
from siren_export.graph.taps import Taps

from .pooling import mean, running_mean

MeanPooling = Literal["residual_mean", "mlp_mean"]


@dataclass(frozen=True, eq=False)
class LayerSelection:
    """The channels that the head reads of one block.

    `layer` is the 0-based block, `channels` int64 [n] in the order of the features, `weight`
    the factor on them.
    """

    layer: int
    channels: NDArray[np.int64]
    weight: float


@dataclass(frozen=True, eq=False)
class SelectedMeans:
    """The part of a `Head` before its features. `layers` ascend."""

    pooling: MeanPooling
    layers: tuple[LayerSelection, ...]

    @property
    def n_features(self) -> int:
        """How many channels the head reads, over all layers."""
        return sum(selection.channels.size for selection in self.layers)

    @property
    def taps(self) -> Taps:
        """As `Head.taps`."""
        channels = {selection.layer: selection.channels for selection in self.layers}
        return Taps("residual" if self.pooling == "residual_mean" else "mlp", channels)

    @property
    def layer_weights(self) -> NDArray[np.float32]:
        """As `Head.layer_weights`."""
        return np.concatenate(
            [np.full(len(s.channels), s.weight, dtype=np.float32) for s in self.layers]
        )

    def pool(
        self, g: GraphBuilder, states: Mapping[int, ir.Value], attention_mask: ir.Value
    ) -> ir.Value:
        """As `Head.pool`: the mean over tokens."""
        return mean(g, self.taps.channels, states, attention_mask)

    def pool_prefixes(
        self,
        g: GraphBuilder,
        states: Mapping[int, ir.Value],
        feature_sum: ir.Value,
        feature_count: ir.Value,
    ) -> tuple[ir.Value, ir.Value]:
        """As `Head.pool_prefixes`: the running sums and means."""
        return running_mean(g, self.taps.channels, states, feature_sum, feature_count)

    def features(self, g: GraphBuilder, pooled: ir.Value) -> ir.Value:
        """The pooled neurons as the head's own runtime has them: times the weights of layers."""
        with g.scope("head"):
            return g.op("Mul", pooled, g.table("layer_weights", self.layer_weights))
