"""Which states of the backbone the head reads."""

from dataclasses import dataclass

from siren_runtime.bundle.heads import Pooling


@dataclass(frozen=True)
class Taps:
    """`pooling` says what is read of each of `blocks` (ascending): residual or MLP output."""

    pooling: Pooling
    blocks: tuple[int, ...]

    @property
    def deepest(self) -> int:
        return self.blocks[-1]

    def reads_residual(self, block: int) -> bool:
        return self.pooling == "residual_mean" and block in self.blocks

    def reads_mlp(self, block: int) -> bool:
        return self.pooling == "mlp_mean" and block in self.blocks
