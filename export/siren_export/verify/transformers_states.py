"""Backbones that transformers loads and llm-siren does not, for llm-siren's heads to read.

llm-siren takes a backbone that AutoModelForCausalLM knows, so no ModernBERT, no DeBERTa and, of
models that read images or sound too, Gemma 3 and GOT-OCR2 alone. It looks for MLPs at
`model.layers[i].mlp`, where BERT's kin have none, nor has a model that reads images; and for the
blocks of an agent's backbone at `layers`, where that one has none either. Here AutoModel loads
these, and they are handed over as llm-siren looks at them.
"""

from dataclasses import dataclass
from importlib import metadata
from types import SimpleNamespace
from typing import Any

from siren_export.families import multimodal
from siren_export.sources.checkpoint import Checkpoint

from .unavailable import ReferenceUnavailable

# Where the MLP of a block ends, before the residual add, in AutoModel's class of a model_type.
_MLPS = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "deberta-v2"), "encoder.layer.{}.output.dense"
    ),
    "modernbert": "layers.{}.mlp",
    **dict.fromkeys(multimodal.MODEL_TYPES, "language_model.layers.{}.mlp"),
}
# What of a model changes no state of a text.
_UNREAD = ("pooler.", *multimodal.OTHER_PARTS)


@dataclass(frozen=True)
class _WithMlps:
    """A model whose MLPs are at `model.layers[i].mlp`, and which else is as it was."""

    whole: Any
    model: SimpleNamespace

    def __call__(self, **inputs: Any) -> Any:
        return self.whole(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def llm_siren_loads(checkpoint: Checkpoint, pooling: str) -> bool:
    """Whether llm-siren loads the backbone of a folder by itself, for heads of a pooling."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if pooling == "residual_last":
        return "text_config" not in checkpoint.config
    model_type = checkpoint.config["model_type"]
    if pooling == "mlp_mean" and model_type in _MLPS:
        return False
    own_classes = checkpoint.config.get("auto_map") or {}
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "AutoModelForCausalLM" in own_classes


def load_states(checkpoint: Checkpoint, pooling: str) -> tuple[Any, str]:
    """The backbone of a folder, float32 on the CPU, and what a reference on it is called.

    Code that the checkpoint names is run where the checkpoint was opened with trust in it.

    Raises:
        ReferenceUnavailable: transformers cannot load it, finds not all weights of it, or would
            leave out the code that the checkpoint names; or where its MLPs are is not known.
    """
    model = _load(checkpoint)
    read = "MLP outputs" if pooling == "mlp_mean" else "hidden states"
    versions = {name: metadata.version(name) for name in ("transformers", "llm-siren", "torch")}
    called = (
        f"transformers {versions['transformers']} {read} of {type(model).__name__}, head in "
        f"float32 by llm-siren {versions['llm-siren']} (torch {versions['torch']})"
    )
    if pooling == "residual_last":
        return model.language_model, called
    if pooling == "mlp_mean":
        return _with_mlps(model, checkpoint.config["model_type"]), called
    return model, called


def _load(checkpoint: Checkpoint) -> Any:
    import torch
    from transformers import AutoModel

    own_classes = checkpoint.config.get("auto_map")
    if own_classes and "AutoModel" not in own_classes:
        raise ReferenceUnavailable(
            f"llm-siren cannot load the backbone, and transformers' AutoModel would not run the "
            f"code of it that {checkpoint.path} names"
        )
    try:
        model, report = AutoModel.from_pretrained(
            str(checkpoint.path.resolve()),
            dtype=torch.float32,
            trust_remote_code=checkpoint.remote_code is not None,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever it raises at a model that it cannot load
        raise ReferenceUnavailable(
            f"neither llm-siren nor transformers can load the backbone: {error}"
        ) from error
    missing = [name for name in report["missing_keys"] if not name.startswith(_UNREAD)]
    if missing:
        raise ReferenceUnavailable(
            f"llm-siren cannot load the backbone, and transformers' {type(model).__name__} does "
            f"not find {min(missing)!r} in it"
        )
    return model


def _with_mlps(model: Any, model_type: str) -> _WithMlps:
    if model_type not in _MLPS:
        raise ReferenceUnavailable(f"where the MLPs of {type(model).__name__} are is not known")
    blocks = range(model.config.get_text_config().num_hidden_layers)
    mlps = [model.get_submodule(_MLPS[model_type].format(block)) for block in blocks]
    return _WithMlps(model, SimpleNamespace(layers=[SimpleNamespace(mlp=mlp) for mlp in mlps]))
