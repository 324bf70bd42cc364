"""What guard.json says of a head: what it reads, how it pools, and what it gives."""

from typing import Annotated, Final, Literal

import msgspec

from .types import Positive, Size, Strict

HARMFUL: Final = 1  # the class whose probability is the score
PRIMARY_HEAD: Final = "harm"  # its outputs have plain names

# What of a block is read, and how its tokens become one row: their mean, or the last of them.
Pooling = Literal["residual_mean", "mlp_mean", "residual_last", "mlp_last"]


class HeadSpec(Strict, frozen=True):
    """A head of the bundle.

    `kind` names what authored its graph; a runtime goes by the other fields. `layers` are the
    blocks that it reads, `features` how many neurons it reads of them, `classes` the number of
    its logits. `labels` names the classes by index, or is empty; class 1 is harm.
    """

    kind: Annotated[str, msgspec.Meta(min_length=1)]
    pooling: Pooling
    layers: list[Size]
    features: Positive
    classes: Annotated[int, msgspec.Meta(ge=2)]
    labels: list[str] = msgspec.field(default_factory=list)

    @property
    def pools_mean(self) -> bool:
        """Whether it reads the mean over tokens, whose running state is their sum; else the last
        token, which needs no state.
        """
        return self.pooling in ("residual_mean", "mlp_mean")
