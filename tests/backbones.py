"""The tiny backbones that tests are run on: one of each family, and every variant of a config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tiny_tokenizers import VOCABULARY

MAX_LENGTH = 48  # of models.make_artifact, in tokens; well below what every tiny backbone takes


@dataclass(frozen=True)
class BackboneSpec:
    """What make_backbone writes.

    Attributes:
        model_type: As in config.json.
        config: Arguments of the transformers configuration, over the tiny defaults.
        dtype: Of the stored weights.
        config_form: Major version of transformers whose config.json is written.
        written: Keys put into config.json as they are, after transformers has saved it.
        language_model: Save the model with its language-model head, so that names have the
            prefix "model." or "bert."; else the bare model, without a prefix.
        sharded: Several safetensors files with an index.
    """

    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: Literal["F32", "F16", "BF16"] = "F32"
    config_form: Literal[4, 5] = 5
    written: Mapping[str, Any] = field(default_factory=dict)
    language_model: bool = True
    sharded: bool = False


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": 128,
}
_FULL = ["full_attention"]
_BUCKETS = {"position_buckets": 8, "max_relative_positions": 24}

BACKBONES: dict[str, BackboneSpec] = {
    "qwen3": BackboneSpec("qwen3", {"tie_word_embeddings": True}),
    "qwen3-untied": BackboneSpec("qwen3", {"tie_word_embeddings": False}, config_form=4),
    "qwen3-bf16-sharded": BackboneSpec("qwen3", dtype="BF16", config_form=4, sharded=True),
    "qwen3-f16-bare": BackboneSpec("qwen3", dtype="F16", language_model=False),
    "qwen3-attention-bias": BackboneSpec("qwen3", {"attention_bias": True}),
    "qwen2": BackboneSpec("qwen2"),
    "qwen2-idle-window": BackboneSpec(
        "qwen2", config_form=4, written={"use_sliding_window": False, "sliding_window": 8}
    ),
    "qwen2-bf16-bare-sharded": BackboneSpec(
        "qwen2", dtype="BF16", language_model=False, sharded=True
    ),
    "llama": BackboneSpec("llama"),
    "llama-4": BackboneSpec("llama", config_form=4),
    "llama-llama3-rope": BackboneSpec("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "llama-llama3-rope-4": BackboneSpec(
        "llama", {"rope_parameters": _LLAMA3_ROPE}, dtype="BF16", config_form=4
    ),
    "llama-linear-rope": BackboneSpec("llama", {"rope_parameters": _LINEAR_ROPE}),
    "llama-linear-rope-4": BackboneSpec(
        "llama",
        {"rope_parameters": _LINEAR_ROPE},
        config_form=4,
        # The key "type" is how rope scaling was written before it was called "rope_type".
        written={"rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "llama-attention-bias": BackboneSpec("llama", {"attention_bias": True}),
    "llama-mlp-bias": BackboneSpec("llama", {"mlp_bias": True}),
    "llama-head-dim": BackboneSpec("llama", {"head_dim": 8}, dtype="F16"),
    "llama-multi-head": BackboneSpec("llama", {"num_key_value_heads": 4}),
    "mistral": BackboneSpec("mistral", {"sliding_window": None}),
    "mistral-window": BackboneSpec("mistral", {"sliding_window": MAX_LENGTH}, config_form=4),
    "mistral-short-window": BackboneSpec("mistral", {"sliding_window": 7}),
    "mistral3": BackboneSpec("mistral3", {"sliding_window": 9}),
    "qwen2-window": BackboneSpec(
        "qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
    ),
    "qwen3-window": BackboneSpec(
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 11,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma2": BackboneSpec("gemma2"),
    "gemma2-4": BackboneSpec("gemma2", config_form=4, dtype="BF16"),
    "gemma2-bias-no-cap": BackboneSpec(
        "gemma2", {"attention_bias": True, "attn_logit_softcapping": None, "sliding_window": 64}
    ),
    "gemma2-untied-linear-rope": BackboneSpec(
        "gemma2", {"tie_word_embeddings": False, "rope_parameters": _LINEAR_ROPE}
    ),
    "gemma3": BackboneSpec("gemma3_text"),
    "gemma3-bare": BackboneSpec("gemma3_text", language_model=False, dtype="F16"),
    "gemma3-pattern": BackboneSpec(
        "gemma3_text", {"layer_types": None, "attention_bias": True, "hidden_activation": "silu"}
    ),
    "gemma3-4": BackboneSpec(
        "gemma3_text",
        config_form=4,
        written={
            "rope_theta": 900.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "gemma3-multimodal": BackboneSpec("gemma3"),
    "gemma3-multimodal-4": BackboneSpec("gemma3", dtype="BF16", sharded=True),
    "llava": BackboneSpec("llava"),
    "llava-next-granite": BackboneSpec("llava_next", {"head_dim": 24}),
    "llava-onevision": BackboneSpec("llava_onevision", dtype="BF16"),
    "vipllava": BackboneSpec("vipllava", {"mlp_bias": True}, language_model=False),
    "internvl-window": BackboneSpec(
        "internvl", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    ),
    "granite": BackboneSpec("granite"),
    "granite-biases-4": BackboneSpec(
        "granite",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 12,
            "rope_parameters": _LINEAR_ROPE,
        },
        config_form=4,
        dtype="BF16",
    ),
    "smollm3": BackboneSpec("smollm3"),
    "smollm3-layers": BackboneSpec(
        "smollm3",
        {
            "no_rope_layers": [0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 7,
            "head_dim": 24,
        },
        dtype="F16",
    ),
    "olmo2": BackboneSpec("olmo2"),
    "olmo2-bias-bare": BackboneSpec(
        "olmo2",
        {"attention_bias": True, "num_key_value_heads": 4, "head_dim": 8},
        language_model=False,
    ),
    "phi3": BackboneSpec("phi3"),
    "phi3-partial-window": BackboneSpec(
        "phi3",
        {"rope_parameters": {"partial_rotary_factor": 0.5}, "sliding_window": 9, "head_dim": 24},
        dtype="BF16",
    ),
    "phi3-longrope": BackboneSpec("phi3", {"rope_parameters": _LONG_ROPE}),
    "phi3-longrope-4": BackboneSpec(
        "phi3",
        {"rope_parameters": _LONG_ROPE},
        config_form=4,
        written={
            "rope_scaling": {key: _LONG_ROPE[key] for key in ("short_factor", "long_factor")}
            | {"type": "longrope"},
            "partial_rotary_factor": 0.75,
        },
    ),
    "bert": BackboneSpec("bert", {"hidden_act": "gelu"}),
    "bert-bare": BackboneSpec("bert", language_model=False, config_form=4),
    "bert-gelu-new": BackboneSpec("bert", {"hidden_act": "gelu_new"}),
    "bert-gelu-tanh-f16": BackboneSpec("bert", {"hidden_act": "gelu_pytorch_tanh"}, dtype="F16"),
    "bert-relu-bf16-sharded": BackboneSpec(
        "bert", {"hidden_act": "relu"}, dtype="BF16", sharded=True
    ),
    "roberta": BackboneSpec("roberta"),
    "roberta-bare-one-type": BackboneSpec(
        "roberta", {"type_vocab_size": 1}, dtype="F16", language_model=False
    ),
    "xlm-roberta": BackboneSpec("xlm-roberta", dtype="BF16"),
    "modernbert": BackboneSpec("modernbert"),
    "modernbert-biases": BackboneSpec(
        "modernbert",
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "hidden_activation": "silu"},
        dtype="BF16",
    ),
    "modernbert-types-bare": BackboneSpec(
        "modernbert",
        {"layer_types": ["sliding_attention", *_FULL, "sliding_attention", *_FULL]},
        language_model=False,
    ),
    "modernbert-old": BackboneSpec(
        "modernbert",
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        written={
            "layer_types": None,
            "rope_parameters": None,
            "global_attn_every_n_layers": 2,
            "global_rope_theta": 500.0,
            "local_rope_theta": 50.0,
        },
    ),
    "deberta": BackboneSpec("deberta-v2"),
    "deberta-own-matrices": BackboneSpec(
        "deberta-v2",
        {"share_att_key": False, "norm_rel_ebd": "none", "position_buckets": -1},
        dtype="F16",
    ),
    "deberta-absolute-typed": BackboneSpec(
        "deberta-v2", {"position_biased_input": True, "type_vocab_size": 2}, language_model=False
    ),
    "deberta-c2p": BackboneSpec("deberta-v2", {"pos_att_type": ["c2p"], **_BUCKETS}),
    "deberta-p2c": BackboneSpec("deberta-v2", {"pos_att_type": "p2c", "share_att_key": False}),
    "deberta-no-part": BackboneSpec("deberta-v2", {"pos_att_type": None}),
    "deberta-conv": BackboneSpec("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-conv-groups": BackboneSpec(
        "deberta-v2", {"conv_kernel_size": 5, "conv_groups": 4, **_BUCKETS}, dtype="BF16"
    ),
}
# One of each family, which tests of graphs, passes, plans and streams go through.
DECODERS = (
    "qwen3",
    "qwen2",
    "llama-llama3-rope",
    "mistral-short-window",
    "gemma2",
    "gemma3",
    "granite",
    "smollm3",
    "olmo2",
    "phi3-longrope",
)
ENCODERS = ("bert", "roberta", "modernbert", "deberta-conv")
FAMILIES = (*DECODERS, *ENCODERS)

_TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
_TINY_DECODER = {**_TINY, "num_key_value_heads": 2, "rms_norm_eps": 0.01}
_ENDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
_TINY_GEMMA = {**_TINY_DECODER, "head_dim": 24, "sliding_window": 8, "tie_word_embeddings": True}
# Models that read images or hear too -> the model_type of their text part, and of what does that.
MULTIMODAL = {
    "gemma3": ("gemma3_text", "siglip_vision_model"),
    "mistral3": ("mistral", "pixtral"),
    "llava": ("llama", "clip_vision_model"),
    "llava_next": ("granite", "clip_vision_model"),
    "llava_onevision": ("qwen2", "siglip_vision_model"),
    "vipllava": ("llama", "clip_vision_model"),
    "internvl": ("qwen3", "internvl_vision"),
    "llava_next_video": ("llama", "clip_vision_model"),
    "video_llava": ("llama", "clip_vision_model"),
    "video_llama_3": ("qwen2", "video_llama_3_vision"),
    "perception_lm": ("llama", "clip_vision_model"),
    "janus": ("llama", "janus_vision_model"),
    "deepseek_vl": ("llama", "siglip_vision_model"),
    "ovis2": ("qwen2", "ovis2_vision"),
    "fast_vlm": ("qwen2", "clip_vision_model"),
    "got_ocr2": ("qwen2", "got_ocr2_vision"),
    "qwen2_audio": ("qwen2", "qwen2_audio_encoder"),
    "audioflamingo3": ("qwen2", "audioflamingo3_encoder"),
    "voxtral": ("llama", "voxtral_encoder"),
}
TINY_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "head_dim": 8, "image_size": 8, "patch_size": 4,
}  # fmt: skip
# What some have beside that: keys of what reads images or sound, and of the whole config.
TINY_VISION_OF: dict[str, dict[str, Any]] = {
    "perception_lm": {"model_args": {"embed_dim": 16}},
    "janus": {"projection_dim": 16, "num_image_tokens": 4},
    "ovis2": {"vocab_size": 16},
    "got_ocr2": {
        "output_channels": 16, "mlp_dim": 16, "window_size": 2, "global_attn_indexes": [0],
    },
    "qwen2_audio": {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
    },
}  # fmt: skip
TINY_OUTER: dict[str, dict[str, Any]] = {
    "janus": {
        "vq_config": {
            "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "embed_dim": 4,
            "latent_channels": 32, "num_embeddings": 16, "image_token_embed_dim": 16,
            "projection_dim": 16,
        }
    },
    "ovis2": {"hidden_size": 16},
}  # fmt: skip
TINY_OF_TYPE: dict[str, dict[str, Any]] = {
    "qwen3": {**_TINY_DECODER, "head_dim": 24, "rope_parameters": {"rope_theta": 10000.0}},
    "qwen2": {**_TINY_DECODER, "rope_parameters": {"rope_theta": 1000.0}},
    "llama": _TINY_DECODER,
    "mistral": {**_TINY_DECODER, "head_dim": 24},
    # Mixtures of experts, whose graphs are not authored here.
    "qwen3_moe": {
        **_TINY_DECODER,
        "head_dim": 24,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "gpt_oss": {
        **_TINY_DECODER,
        "head_dim": 24,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", *_FULL],
        "rope_parameters": {"rope_theta": 10000.0},
    },
    "granite": {
        **_TINY_DECODER,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.1,
        "logits_scaling": 5.0,
    },
    "smollm3": {**_TINY_DECODER, "no_rope_layer_interval": 2, "pad_token_id": 0},
    "olmo2": _TINY_DECODER,
    "phi3": {
        **_TINY_DECODER,
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 128,
        "pad_token_id": 0,
    },
    "phi": {
        **{k: v for k, v in _TINY_DECODER.items() if k != "rms_norm_eps"},
        "partial_rotary_factor": 0.5,
        "layer_norm_eps": 0.01,
    },
    "gemma2": {**_TINY_GEMMA, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 4.0},
    "gemma3_text": {
        **_TINY_GEMMA,
        "query_pre_attn_scalar": 30,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", *_FULL],
    },
    "bert": {**_TINY, "type_vocab_size": 2, "layer_norm_eps": 0.01},
    "roberta": {**_TINY, "max_position_embeddings": 130, "layer_norm_eps": 0.01},
    "xlm-roberta": {**_TINY, "max_position_embeddings": 132, "pad_token_id": 3},
    "modernbert": {**_TINY, "pad_token_id": 0, "local_attention": 9, "norm_eps": 0.01, **_ENDS},
    "deberta-v2": {
        **_TINY,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "position_buckets": 16,
        "layer_norm_eps": 0.01,
    },
}
