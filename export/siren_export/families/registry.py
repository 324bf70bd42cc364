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
from .imported import ImportedBackbone

_Parse = Callable[[Mapping[str, Any], str], Backbone]

_PARSERS: dict[str, _Parse] = {
    **dict.fromkeys(llama.MODEL_TYPES, llama.parse),
    **dict.fromkeys(gemma.MODEL_TYPES, gemma.parse),
    **dict.fromkeys(granite.MODEL_TYPES, granite.parse),
    **dict.fromkeys(smollm3.MODEL_TYPES, smollm3.parse),
    **dict.fromkeys(olmo2.MODEL_TYPES, olmo2.parse),
    **dict.fromkeys(phi3.MODEL_TYPES, phi3.parse),
    "gemma3": partial(multimodal.parse, text_type="gemma3_text", parse_text=gemma.parse),
    "mistral3": partial(multimodal.parse, text_type="mistral", parse_text=llama.parse),
    **dict.fromkeys(bert.MODEL_TYPES, bert.parse),
    **dict.fromkeys(modernbert.MODEL_TYPES, modernbert.parse),
    **dict.fromkeys(deberta.MODEL_TYPES, deberta.parse),
}
SUPPORTED = tuple(_PARSERS)
# Models whose MLP is a mixture of experts. Some call themselves otherwise.
_EXPERTS = re.compile(
    r".*(moe|mixtral|dbrx|deepseek_v|gpt_oss|jamba|llama4|minimax|ernie4_5_moe).*", re.DOTALL
)


def parse_config(config: Mapping[str, Any], origin: str) -> Backbone:
    """Read a config.json object; `origin` names it in errors.

    Raises:
        CheckpointError: an unsupported `model_type`, a key of a wrong type or range, or a
            setting that the authored graphs do not have.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED and _EXPERTS.fullmatch(str(model_type)):
        raise CheckpointError(
            f"{origin}: model_type {model_type!r} is a mixture of experts, which is not "
            "supported: it would need the router authored, a product of each token with the "
            "matrices of its own experts, and passes that quantize those; use a dense model, or "
            "export its graph with Optimum or onnxruntime-genai's builder and give that folder as "
            "--backbone"
        )
    if model_type not in SUPPORTED:
        raise CheckpointError(
            f"{origin}: model_type {model_type!r} is not supported; supported: "
            f"{', '.join(SUPPORTED)}"
        )
    backbone = _PARSERS[model_type](config, origin)
    check_activation(backbone.hidden_act, origin)
    return backbone


def backbone_of(checkpoint: Checkpoint) -> Backbone | ImportedBackbone:
    """The backbone of a checkpoint: authored here, or its own graph where it is an ONNX file.

    Raises:
        CheckpointError: as `parse_config`.
    """
    if checkpoint.onnx is not None:
        return ImportedBackbone(checkpoint.onnx)
    return parse_config(checkpoint.config, checkpoint.source)
