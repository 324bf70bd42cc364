"""The families there are, found by the model_type of config.json."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from siren_export.graph.activations import check_activation
from siren_export.sources.checkpoint import Checkpoint
from siren_runtime.errors import CheckpointError

from . import bert, deberta, gemma, granite, llama, modernbert, multimodal, olmo2, phi3, smollm3
from .base import Backbone
from .gemma import Gemma
from .imported import ImportedBackbone
from .llama import Llama
from .olmo2 import Olmo2

_DECODERS: dict[str, Callable[[Mapping[str, Any], str], Gemma | Llama | Olmo2]] = {
    **dict.fromkeys(llama.MODEL_TYPES, llama.parse),
    **dict.fromkeys(gemma.MODEL_TYPES, gemma.parse),
    **dict.fromkeys(granite.MODEL_TYPES, granite.parse),
    **dict.fromkeys(smollm3.MODEL_TYPES, smollm3.parse),
    **dict.fromkeys(olmo2.MODEL_TYPES, olmo2.parse),
    **dict.fromkeys(phi3.MODEL_TYPES, phi3.parse),
}
_PARSERS: dict[str, Callable[[Mapping[str, Any], str], Backbone]] = {
    **_DECODERS,
    **dict.fromkeys(multimodal.MODEL_TYPES, partial(multimodal.parse, parsers=_DECODERS)),
    **dict.fromkeys(bert.MODEL_TYPES, bert.parse),
    **dict.fromkeys(modernbert.MODEL_TYPES, modernbert.parse),
    **dict.fromkeys(deberta.MODEL_TYPES, deberta.parse),
}
SUPPORTED = tuple(_PARSERS)
# Models that have experts, or may have, by their names; others are known by their counts of them.
_EXPERTS = re.compile(
    r"moe|mixtral|dbrx|arctic|deepseek_v\d|dots1|gpt_oss|jamba|llama4|longcat|minimax|qwen3_next"
)
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def parse_config(config: Mapping[str, Any], origin: str) -> Backbone:
    """Read a config.json object; `origin` names it in errors.

    Raises:
        CheckpointError: an unsupported `model_type`, a key of a wrong type or range, or a
            setting that the authored graphs do not have.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        raise CheckpointError(
            f"{origin}: model_type {model_type!r} {_lacking(config, str(model_type))}"
        )
    backbone = _PARSERS[model_type](config, origin)
    check_activation(backbone.hidden_act, origin)
    return backbone


def _lacking(config: Mapping[str, Any], model_type: str) -> str:
    """Why a model_type that is none of `SUPPORTED` is refused, and what could be done."""
    text = config.get("text_config")
    parts = (config, text) if isinstance(text, Mapping) else (config,)
    counts = [part[key] for part in parts for key in _COUNTS if part.get(key) is not None]
    graph = (
        "export its graph with Optimum or onnxruntime-genai's builder and give that folder as "
        "--backbone"
    )
    if any(counts) or (not counts and _EXPERTS.search(model_type)):
        return (
            "is a mixture of experts, which is not supported: it would need the router authored, "
            "a product of each token with the matrices of its own experts, and passes that "
            f"quantize those; use a dense model, or {graph}"
        )
    if _EXPERTS.search(model_type):
        return (
            "is not supported: its blocks may have experts or Mamba layers, though this config "
            "counts no experts, and none of its kind is authored here; use another model, or "
            f"{graph}"
        )
    return f"is not supported; supported: {', '.join(SUPPORTED)}"


def backbone_of(checkpoint: Checkpoint) -> Backbone | ImportedBackbone:
    """The backbone of a checkpoint: authored here, or its own graph where it is an ONNX file.

    Raises:
        CheckpointError: as `parse_config`.
    """
    if checkpoint.onnx is not None:
        return ImportedBackbone(checkpoint.onnx)
    return parse_config(checkpoint.config, checkpoint.source)
