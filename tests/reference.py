"""llm-siren in float32, the reference that every score is compared with."""

from pathlib import Path
from typing import Literal

import torch
from siren_guard import SirenGuard

Pooling = Literal["residual_mean", "mlp_mean"]


class Reference(SirenGuard):
    """llm-siren's guard, which keeps the features of its last texts.

    And it takes `mlp_mean` of BERT, which llm-siren refuses since it looks for
    `model.layers[i].mlp` only: in a BERT layer, `output.dense` ends the feed-forward network,
    before the residual add and the norm.
    """

    features: torch.Tensor  # float32 [batch, n_features]

    def _aggregate_features(self, texts: list[str]) -> torch.Tensor:
        self.features = super()._aggregate_features(texts)
        return self.features

    def _register_mlp_hooks(self) -> None:
        encoder = getattr(self._backbone, "bert", None)
        if encoder is None:
            super()._register_mlp_hooks()
            return
        for layer in self._selected_layers:
            module = encoder.encoder.layer[layer].output.dense
            self._hook_handles.append(module.register_forward_hook(self._make_mlp_hook(layer)))


def load_reference(artifact: Path, *, attention: Literal["eager", "sdpa"] = "sdpa") -> Reference:
    """Load llm-siren's guard in float32 on the CPU."""
    guard = Reference.from_pretrained(str(artifact), device="cpu", dtype=torch.float32)
    guard._backbone.set_attn_implementation(attention)
    return guard
