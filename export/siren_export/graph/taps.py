"""Which states of the backbone a head reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Taps:
    """What a head reads of which blocks.

    Attributes:
        state: what of a block: the residual stream behind it, or what its MLP gives.
        channels: block -> the channels that are read there, int64 [n], in the order of the
            features; the blocks ascend.
        final_norm: whether the stream behind the backbone's last block is read behind its final
            norm, as transformers has it in `hidden_states`.
    """

    state: Literal["residual", "mlp"]
    channels: Mapping[int, NDArray[np.int64]]
    final_norm: bool = True

    @property
    def deepest(self) -> int:
        """The last block that is read."""
        return max(self.channels)

    def reads_residual(self, block: int) -> bool:
        """Whether the residual stream behind `block` is read."""
        return self.state == "residual" and block in self.channels

    def reads_mlp(self, block: int) -> bool:
        """Whether what the MLP of `block` gives is read."""
        return self.state == "mlp" and block in self.channels
