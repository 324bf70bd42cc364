"""Checkpoints that read images too, of which the text part is a family of ours.

config.json holds the text part's own under `text_config`. Its weights are stored under
`language_model.`; those of the other parts are not read, since a guard scores text alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from siren_runtime.errors import CheckpointError

from .gemma import Gemma
from .keys import check_keys
from .llama import Llama
from .parsing import convert

_Text = TypeVar("_Text", Gemma, Llama)

_PREFIXES = (
    "model.language_model.", "language_model.model.", "language_model.",
    "model.vision_tower.", "model.multi_modal_projector.",
)  # fmt: skip


class _Config(msgspec.Struct):
    model_type: str
    text_config: dict[str, Any]


# How images become tokens, and what those are.
_HARMLESS = frozenset(
    {
        "boi_token_id", "boi_token_index", "eoi_token_id", "eoi_token_index", "image_token_id",
        "image_token_index", "mm_tokens_per_image", "multimodal_projector_bias",
        "projector_hidden_act", "spatial_merge_size", "vision_config", "vision_feature_layer",
    }
)  # fmt: skip


def parse(
    config: Mapping[str, Any],
    origin: str,
    text_type: str,
    parse_text: Callable[[Mapping[str, Any], str], _Text],
) -> _Text:
    """Read the text part of a config.json, whose model_type is `text_type`.

    Raises:
        CheckpointError: there is none or it is of another type, or as of the family.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS)
    text = {"model_type": text_type, **convert(config, _Config, origin).text_config}
    if text["model_type"] != text_type:
        raise CheckpointError(
            f"{origin}: text_config.model_type is {text['model_type']!r}; a "
            f"{config['model_type']} is read with {text_type}"
        )
    return replace(parse_text(text, f"{origin}: text_config"), prefixes=_PREFIXES)
