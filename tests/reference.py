"""llm-siren in float32, the reference that every score is compared with."""

from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from siren_guard import SirenGuard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PreTrainedConfig,
)

Pooling = Literal["residual_mean", "mlp_mean"]

# Where a block's MLP ends, before the residual add, in the models that are not Llama's like.
_MLPS = {
    "bert": "bert.encoder.layer.{}.output.dense",
    "roberta": "roberta.encoder.layer.{}.output.dense",
    "xlm-roberta": "roberta.encoder.layer.{}.output.dense",
    "deberta-v2": "deberta.encoder.layer.{}.output.dense",
    "gemma3": "model.language_model.layers.{}.mlp",
    "mistral3": "model.language_model.layers.{}.mlp",
}


class Reference(SirenGuard):
    """llm-siren's guard, which keeps the features of its last texts.

    And it takes `mlp_mean` of models that llm-siren refuses, since it looks for
    `model.layers[i].mlp` only.
    """

    features: torch.Tensor  # float32 [batch, n_features]

    def _aggregate_features(self, texts: list[str]) -> torch.Tensor:
        self.features = super()._aggregate_features(texts)
        return self.features

    def _register_mlp_hooks(self) -> None:
        name = _MLPS.get(self._backbone.config.model_type, "model.layers.{}.mlp")
        for layer in self._selected_layers:
            module = self._backbone.get_submodule(name.format(layer))
            self._hook_handles.append(module.register_forward_hook(self._make_mlp_hook(layer)))


class _AnyLanguageModel:
    """What llm-siren loads a backbone by, here for models that are no causal ones by name too."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        return auto_class(AutoConfig.from_pretrained(name)).from_pretrained(name, **options)


def auto_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that makes a language model of a config."""
    classes = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMaskedLM)
    return next(made for made in classes if type(config) in made._model_mapping)


def load_reference(artifact: Path, *, attention: Literal["eager", "sdpa"] = "sdpa") -> Reference:
    """Load llm-siren's guard in float32 on the CPU; eager where transformers has nothing else."""
    with patch("siren_guard.siren_guard.AutoModelForCausalLM", _AnyLanguageModel):
        guard = Reference.from_pretrained(str(artifact), device="cpu", dtype=torch.float32)
    guard._backbone.set_attn_implementation(
        attention if guard._backbone._supports_sdpa else "eager"
    )
    return guard
