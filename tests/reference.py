"""llm-siren in float32, the reference that every score is compared with."""

import functools
import json
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from siren_guard import SirenGuard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    PreTrainedConfig,
)

from backbones import MULTIMODAL

Pooling = Literal["residual_mean", "mlp_mean"]

# Where a block's MLP ends, before the residual add, in the models that are not Llama's like.
_MLPS = {
    "bert": "bert.encoder.layer.{}.output.dense",
    "roberta": "roberta.encoder.layer.{}.output.dense",
    "xlm-roberta": "roberta.encoder.layer.{}.output.dense",
    "deberta-v2": "deberta.encoder.layer.{}.output.dense",
    **dict.fromkeys(MULTIMODAL, "model.language_model.layers.{}.mlp"),
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
    classes = (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,  # of sound
    )
    return next(made for made in classes if type(config) in made._model_mapping)


def load_reference(artifact: Path, *, attention: Literal["eager", "sdpa"] = "sdpa") -> Reference:
    """Load llm-siren's guard in float32 on the CPU; eager where transformers has nothing else."""
    with patch("siren_guard.siren_guard.AutoModelForCausalLM", _AnyLanguageModel):
        guard = Reference.from_pretrained(str(artifact), device="cpu", dtype=torch.float32)
    guard._backbone.set_attn_implementation(
        attention if guard._backbone._supports_sdpa else "eager"
    )
    return guard


def plain_features(artifact: Path, backbone: Path, text: str) -> torch.Tensor:
    """The features of a head, float32 [n_features], by transformers' hidden states and torch alone.

    Written from the artifact's format; shares no code with llm-siren or siren-edge.
    """
    config = json.loads((artifact / "siren_config.json").read_text())
    module = config["siren_module"]
    model, tokenizer = _backbone(backbone)
    limit = config["inference"]["max_length"]
    tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)
    with torch.no_grad():
        states = model(**tokens, output_hidden_states=True).hidden_states
        parts = [
            states[layer + 1][0].mean(dim=0)[module["selected_neurons_dict"][key]]
            * module["layer_weights"].get(str(layer), 1.0)
            for layer in sorted(module["selected_layers"])
            for key in [f"layer{layer}_residual_mean"]
        ]
        return torch.cat(parts).float()


def plain_logits(artifact: Path, backbone: Path, text: str) -> torch.Tensor:
    """The logits of an MLP head, float32 [classes], likewise."""
    tensors = load_file(artifact / "siren.safetensors")
    with torch.no_grad():
        x = plain_features(artifact, backbone, text)
        slots = sorted({int(name.split(".")[1]) for name in tensors})
        for place, slot in enumerate(slots):
            x = torch.relu(x) if place else x
            x = tensors[f"network.{slot}.weight"] @ x + tensors[f"network.{slot}.bias"]
    return x


@functools.cache
def _backbone(folder: Path) -> tuple[Any, Any]:
    model = _AnyLanguageModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(str(folder))
