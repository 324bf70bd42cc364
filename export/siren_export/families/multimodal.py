"""Checkpoints that read images, videos or sound too, of which the text part is a decoder of ours.

config.json holds the text part's own under `text_config`. Its weights are stored under
`language_model.`; those of the other parts are not read, since a guard scores text alone. Of a
text by itself every model of `MODEL_TYPES` gives its text part the embeddings of the tokens and
nothing else: no positions and no mask of its own, as PaliGemma has.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from siren_export.sources.experts import why_experts_are_refused
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
    "llava_next_video": "llama",
    "llava_onevision": "qwen2",
    "vipllava": "llama",
    "video_llava": "llama",
    "video_llama_3": "qwen2",
    "internvl": "qwen2",
    "perception_lm": "llama",
    "janus": "llama",
    "deepseek_vl": "llama",
    "ovis2": "qwen2",
    "fast_vlm": "qwen2",
    "got_ocr2": "qwen2",
    "qwen2_audio": "qwen2",
    "audioflamingo3": "qwen2",
    "voxtral": "llama",
}
# Which have no other text part: transformers takes their own, whatever text_config calls itself.
_OF_ONE_TEXT = ("gemma3",)

# What the names of the other parts' weights begin with.
OTHER_PARTS = (
    "aligner.", "audio_tower.", "generation_aligner.", "generation_embeddings.",
    "generation_head.", "image_newline", "image_tower.", "multi_modal_projector.", "projector.",
    "video_tower.", "vision_model.", "vision_resampler.", "vision_tower.",
    "visual_embeddings_table.", "vqmodel.",
)  # fmt: skip
_PREFIXES = (
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    *(f"model.{part}" for part in OTHER_PARTS),
)

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


# And what it takes for any text part of a model_type.
_DEFAULTS_OF_OUTER: dict[str, dict[str, Any]] = {
    "voxtral": {
        "vocab_size": 131_072, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 30, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "rope_theta": 1e8,
    },
}  # fmt: skip


class _Config(msgspec.Struct):
    model_type: str
    text_config: dict[str, Any]


# How images and sound become tokens, and what those are. Vocabulary and width are the text part's.
_HARMLESS = frozenset(
    {
        "audio_config", "audio_token_id", "audio_token_index", "boi_token_id", "boi_token_index",
        "downsample_ratio", "eoi_token_id", "eoi_token_index", "hidden_size", "ignore_index",
        "image_grid_pinpoints", "image_seq_length", "image_token_id", "image_token_index",
        "mm_tokens_per_image", "multimodal_projector_bias", "projector_bias",
        "projector_hidden_act", "projector_layernorm_eps", "projector_pooling_ratio",
        "spatial_merge_size", "spatial_pool_mode", "spatial_pool_stride",
        "use_image_newline_parameter", "video_seq_length", "video_token_id", "video_token_index",
        "vision_aspect_ratio", "vision_config", "vision_feature_layer", "vision_feature_layers",
        "vision_feature_select_strategy", "vision_use_cls_token", "visual_indicator_token_ids",
        "vocab_size", "vq_config",
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
    given = {key: value for key, value in given.items() if (key, value) != ("rope_theta", None)}
    text_type = given.get("model_type", MODEL_TYPES[outer])
    taken = (MODEL_TYPES[outer],) if outer in _OF_ONE_TEXT else tuple(parsers)
    if text_type not in taken:
        experts = why_experts_are_refused(given)
        why = experts or f"is none that a {outer} is read with: {', '.join(taken)}"
        raise CheckpointError(f"{origin}: text_config.model_type {text_type!r} {why}")
    sizes = dict(zip(_SIZES, _DEFAULT_SIZES.get(text_type, ()), strict=False))
    defaults = dict(_DEFAULTS_OF_OUTER.get(outer, {}))
    ropes = (given.get("rope_scaling"), given.get("rope_parameters"))
    if any(isinstance(rope, dict) and "rope_theta" in rope for rope in ropes):
        defaults.pop("rope_theta", None)
    text = {**sizes, **defaults, **given, "model_type": text_type}
    return replace(parsers[text_type](text, f"{origin}: text_config"), prefixes=_PREFIXES)
