"""Checkpoints that read images too, of which the text part is a decoder of ours.

config.json holds the text part's own under `text_config`. Its weights are stored under
`language_model.`; those of the other parts are not read, since a guard scores text alone. Of a
text without images every model of `MODEL_TYPES` gives its text part the embeddings of the tokens
and nothing else: no positions and no mask of its own, as PaliGemma has.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from siren_runtime.errors import CheckpointError

from .gemma import Gemma
from .keys import check_keys
from .llama import Llama
from .olmo2 import Olmo2
from .parsing import convert

_Text = Gemma | Llama | Olmo2

# model_type -> that of the text part where text_config has none.
MODEL_TYPES = {
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "vipllava": "llama",
    "internvl": "qwen2",
}
# Which have no other text part: transformers takes their own, whatever text_config calls itself.
_OF_ONE_TEXT = ("gemma3",)

_PREFIXES = (
    "model.language_model.", "language_model.model.", "language_model.",
    "model.vision_tower.", "model.multi_modal_projector.", "model.image_newline",
)  # fmt: skip

# What transformers takes where text_config leaves it out, of the families that have no defaults
# of their own: a text model's own config.json always has these.
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
_DEFAULT_SIZES = {
    "llama": (32_000, 4096, 11_008, 32, 32),
    "granite": (32_000, 4096, 11_008, 32, 32),
    "mistral": (32_000, 4096, 14_336, 32, 32),
    "qwen2": (151_936, 4096, 22_016, 32, 32),
    "qwen3": (151_936, 4096, 22_016, 32, 32),
}


class _Config(msgspec.Struct):
    model_type: str
    text_config: dict[str, Any]


# How images become tokens, and what those are. The vocabulary is the text part's.
_HARMLESS = frozenset(
    {
        "boi_token_id", "boi_token_index", "downsample_ratio", "eoi_token_id", "eoi_token_index",
        "ignore_index", "image_grid_pinpoints", "image_seq_length", "image_token_id",
        "image_token_index", "mm_tokens_per_image", "multimodal_projector_bias",
        "projector_hidden_act", "projector_layernorm_eps", "spatial_merge_size",
        "use_image_newline_parameter", "video_token_id", "video_token_index",
        "vision_aspect_ratio", "vision_config", "vision_feature_layer", "vision_feature_layers",
        "vision_feature_select_strategy", "vocab_size",
    }
)  # fmt: skip


def parse(
    config: Mapping[str, Any],
    origin: str,
    parsers: Mapping[str, Callable[[Mapping[str, Any], str], _Text]],
) -> _Text:
    """Read the text part of a config.json of one of `MODEL_TYPES`.

    Args:
        parsers: of text parts, by their model_type.

    Raises:
        CheckpointError: there is none or it is of another type, or as of the family.
    """
    check_keys(config, _Config, origin, harmless=_HARMLESS)
    outer, given = config["model_type"], convert(config, _Config, origin).text_config
    text_type = given.get("model_type", MODEL_TYPES[outer])
    taken = (MODEL_TYPES[outer],) if outer in _OF_ONE_TEXT else tuple(parsers)
    if text_type not in taken:
        raise CheckpointError(
            f"{origin}: text_config.model_type is {text_type!r}; a {outer} is read with "
            f"{' or '.join(taken)}"
        )
    sizes = dict(zip(_SIZES, _DEFAULT_SIZES.get(text_type, ()), strict=False))
    text = {**sizes, **given, "model_type": text_type}
    return replace(parsers[text_type](text, f"{origin}: text_config"), prefixes=_PREFIXES)
