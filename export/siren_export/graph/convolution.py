"""A convolution along the sequence, for which padding is as if nothing were there."""

from dataclasses import dataclass

import onnx_ir as ir

from .activations import activation
from .builder import FLOAT, GraphBuilder
from .weights import BackboneWeights


@dataclass(frozen=True)
class Convolution:
    """What it looks like.

    Attributes:
        width: how many tokens it sees: as many before a token as after it, so it is odd.
        groups: of channels; each sees itself alone.
        act: the activation after it, one of `activations.ACTIVATIONS`.
    """

    width: int
    groups: int
    act: str

    def author(
        self,
        g: GraphBuilder,
        weights: BackboneWeights,
        x: ir.Value,
        attention_mask: ir.Value,
        name: str,
        channels: int,
    ) -> ir.Value:
        """Each token with its neighbours, in the compute dtype.

        Args:
            x: float32 [batch, sequence, channels].
            attention_mask: int64 [batch, sequence], 1 for real tokens.
            name: under which its weight and bias are stored.

        Returns:
            [batch, sequence, channels].
        """
        shape = (channels, channels // self.groups, self.width)
        beside = self.width // 2
        with g.scope("conv"):
            real = g.op("Unsqueeze", g.cast(attention_mask, FLOAT), g.const([2]))
            x = g.to_compute(g.op("Mul", x, real))
            kernel = weights.table(f"{name}.weight", shape, g.compute)
            x = g.op(
                "Conv",
                g.op("Transpose", x, perm=[0, 2, 1]),
                g.weight("weight", kernel),
                g.weight("bias", weights.vector(f"{name}.bias", channels, g.compute)),
                group=self.groups,
                pads=[beside, beside],
            )
            return activation(g, self.act, g.op("Transpose", x, perm=[0, 2, 1]))
