"""The families there are, found by the model_type of config.json."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from siren_export.graph.activations import check_activation
from siren_export.sources.checkpoint import Checkpoint
from siren_export.sources.experts import why_experts_are_refused
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


def parse_config(config: Mapping[str, Any], origin: str) -> Backbone:
    """Read a config.json object; `origin` names it in errors.

    Raises:
        CheckpointError: an unsupported `model_type`, a key of a wrong type or range, or a
            setting that the authored graphs do not have.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        raise CheckpointError(f"{origin}: model_type {model_type!r} {_lacking(config)}")
    backbone = _PARSERS[model_type](config, origin)
    check_activation(backbone.hidden_act, origin)
    return backbone


def _lacking(config: Mapping[str, Any]) -> str:
    """Why a config whose model_type is none of `SUPPORTED` is refused, and what could be done."""
    text = config.get("text_config")
    parts = (config, text) if isinstance(text, Mapping) else (config,)
    return why_experts_are_refused(*parts) or f"is not supported; supported: {', '.join(SUPPORTED)}"


def backbone_of(checkpoint: Checkpoint) -> Backbone | ImportedBackbone:
    """The backbone of a checkpoint: authored here, or its own graph where it is an ONNX file.

    Raises:
        CheckpointError: as `parse_config`.
    """
    if checkpoint.onnx is not None:
        return ImportedBackbone(checkpoint.onnx)
    return parse_config(checkpoint.config, checkpoint.source)
