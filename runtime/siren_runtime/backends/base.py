"""What a backend is: something that runs a bundle's score graph."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outputs:
    """What the score graph gives for one batch."""

    score: FloatArray  # [batch], the probability of harm
    logits: FloatArray  # [batch, classes]
    features: FloatArray  # [batch, n_features], pooled, selected, layer-weighted neurons


class Backend(Protocol):
    """Runs the score graph; safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """What the graph runs on: "cpu", "cuda", "tensorrt" or "tensorrt-rtx"."""

    @property
    def token_budget(self) -> int:
        """How many tokens a batch should hold at most, padding included, to be quick."""

    def run(self, input_ids: TokenArray, attention_mask: TokenArray) -> Outputs:
        """Score right-padded `input_ids` [batch, sequence]; the mask is 1 on real tokens.

        Raises:
            BackendError: the engine failed or gave outputs of another shape.
        """
