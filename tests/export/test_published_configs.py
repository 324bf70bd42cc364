"""config.json as it is published, in every form that was seen: no key of it is in the way."""

from typing import Any

import pytest

from siren_export.families.registry import parse_config

_QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
_LLAMA3_ROPE = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
_MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.0",
    "use_cache": True, "vocab_size": 32768,
}  # fmt: skip
_BERT: dict[str, Any] = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 384, "initializer_range": 0.02, "intermediate_size": 1536,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
    "position_embedding_type": "absolute", "transformers_version": "4.8.2",
    "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
}  # fmt: skip

_GEMMA2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid",
    "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304, "initializer_range": 0.02, "intermediate_size": 9216,
    "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
    "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "sliding_window": 4096, "torch_dtype": "float32", "transformers_version": "4.42.4",
    "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
_GEMMA3: dict[str, Any] = {
    **{key: value for key, value in _GEMMA2.items() if key not in ("hidden_act",)},
    "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": None,
    "eos_token_id": [1, 106], "final_logit_softcapping": None, "hidden_size": 1152,
    "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
    "num_attention_heads": 4, "num_key_value_heads": 1, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "vocab_size": 262144,
}  # fmt: skip
_PHI: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 199999, "embd_pdrop": 0.0, "eos_token_id": 199999, "hidden_act": "silu",
    "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 17920,
    "model_type": "phi3", "num_attention_heads": 40, "num_hidden_layers": 40,
    "original_max_position_embeddings": 4096, "pad_token_id": 199999, "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
    "use_cache": True, "vocab_size": 200064,
}  # fmt: skip
_IMAGES: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
    "image_token_index": 32000, "projector_hidden_act": "gelu", "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": {"model_type": "clip_vision_model"}, "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default", "vocab_size": 32064,
}  # fmt: skip
_VISION = {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"}

PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {**_QWEN, "model_type": "qwen2", "use_mrope": False},
    "qwen2.5-instruct": {**_QWEN, "model_type": "qwen2"},
    "qwen3-0.6b": {
        **_QWEN, "model_type": "qwen3", "attention_bias": False, "head_dim": 128,
        "rope_scaling": None, "sliding_window": None, "num_attention_heads": 16,
        "num_key_value_heads": 8, "max_window_layers": 28,
    },
    "qwen3-transformers-5": {
        **{key: value for key, value in _QWEN.items() if key not in ("rope_theta", "torch_dtype")},
        "model_type": "qwen3", "head_dim": 128, "dtype": "bfloat16", "pad_token_id": None,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "sliding_window": None,
        "layer_types": ["full_attention"] * 24, "transformers_version": "5.0.0",
    },
    "llama-3.2-1b": {**_LLAMA, "head_dim": 64, "rope_scaling": _LLAMA3_ROPE},
    "llama-3-8b": {**_LLAMA, "rope_scaling": None},
    "llama-3-unsloth": {
        **_LLAMA, "_name_or_path": "x", "pad_token_id": 128004, "unsloth_fixed": True,
        "unsloth_version": "2024.9",
    },
    "llama-2-chat": {
        **_LLAMA, "_name_or_path": "meta-llama/Llama-2-7b-chat-hf", "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "rope_scaling": None, "num_key_value_heads": 32,
    },
    "llama-1": {
        **_LLAMA, "max_sequence_length": 2048, "pad_token_id": -1, "num_key_value_heads": 32,
    },
    "vicuna": {
        **_LLAMA, "max_length": 4096, "temperature": 0.9, "top_p": 0.6, "do_sample": True,
    },
    "smollm2": {
        **_LLAMA, "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None,
        "transformers.js_config": {"dtype": "q4"}, "pad_token_id": 2,
    },
    "mistral-7b-v0.3": _MISTRAL,
    "mistral-7b-v0.1": {**_MISTRAL, "sliding_window": 4096, "rope_theta": 10000.0},
    "mistral-nemo": {**_MISTRAL, "head_dim": 128, "_name_or_path": "x"},
    "zephyr": {**_MISTRAL, "pad_token_id": 2, "_attn_implementation_autoset": True},
    "gemma-2-2b": _GEMMA2,
    "gemma-3-1b": _GEMMA3,
    "gemma-3-270m": {
        **{key: value for key, value in _GEMMA3.items() if "pattern" not in key},
        "_sliding_window_pattern": 6, "use_bidirectional_attention": False, "num_hidden_layers": 18,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    },
    "gemma-3-4b": {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": _VISION,
    },
    "mistral-small-3.1": {
        "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10,
        "model_type": "mistral3", "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu", "spatial_merge_size": 2, "text_config": _MISTRAL,
        "torch_dtype": "bfloat16", "vision_config": {"model_type": "pixtral"},
        "vision_feature_layer": -1,
    },
    "llava-1.5-7b": {
        **_IMAGES, "model_type": "llava", "pad_token_id": 32001,
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
            "torch_dtype": "float16", "vocab_size": 32064,
        },
    },
    "llava-v1.6-mistral-7b": {
        **_IMAGES, "image_grid_pinpoints": [[336, 672], [672, 336]], "image_seq_length": 576,
        "model_type": "llava_next", "use_image_newline_parameter": True,
        "text_config": {
            "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
            "sliding_window": None, "torch_dtype": "bfloat16", "vocab_size": 32064,
        },
    },
    "llava-onevision-qwen2-0.5b": {
        **_IMAGES, "image_grid_pinpoints": [[384, 768]], "model_type": "llava_onevision",
        "text_config": {
            "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 24,
            "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
            "num_key_value_heads": 2, "rope_theta": 1000000.0, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "vocab_size": 152000,
        },
        "use_image_newline_parameter": True, "video_token_index": 151647,
        "vision_aspect_ratio": "anyres_max_9", "vision_feature_select_strategy": "full",
    },
    "vip-llava-7b": {
        **_IMAGES, "model_type": "vipllava", "projector_layernorm_eps": 1e-05,
        "text_config": {"model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064},
        "vision_feature_layers": [-2, -5, -8, -11, 6],
    },
    "internvl-3.5-1b": {
        "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5,
        "image_seq_length": 256, "image_token_id": 151671, "model_type": "internvl",
        "projector_hidden_act": "gelu", "torch_dtype": "bfloat16",
        "text_config": {**_QWEN, "head_dim": 128, "model_type": "qwen3", "rope_scaling": None},
        "vision_config": {"model_type": "internvl_vision"}, "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    },
    "granite-3.3-2b": {
        **_LLAMA, "model_type": "granite", "architectures": ["GraniteForCausalLM"],
        "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
        "residual_multiplier": 0.22, "rope_scaling": None,
    },
    "smollm3-3b": {
        **_LLAMA, "model_type": "smollm3", "layer_types": ["full_attention"] * 16,
        "max_window_layers": 28, "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 4, "pretraining_tp": 2, "rope_scaling": None,
        "sliding_window": None, "use_sliding_window": False,
    },
    "olmo-2-1b": {
        **{key: value for key, value in _LLAMA.items() if key != "mlp_bias"},
        "model_type": "olmo2", "pad_token_id": 100277, "rope_scaling": None,
    },
    "phi-4": {**_PHI, "max_position_embeddings": 16384, "num_key_value_heads": 10},
    "phi-4-mini": {
        **_PHI, "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False,
        "max_position_embeddings": 131072, "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "long_factor": [1.0] * 48, "short_factor": [1.0] * 48, "type": "longrope",
        },
        "sliding_window": 262144, "num_key_value_heads": 8,
    },
    "roberta-base": {
        **_BERT, "architectures": ["RobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta",
        "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
    },
    "xlm-roberta-base": {
        **_BERT, "architectures": ["XLMRobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "xlm-roberta",
        "output_past": True, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 250002,
    },
    "modernbert-base": {
        "architectures": ["ModernBertForMaskedLM"], "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 50281, "classifier_activation": "gelu",
        "classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean",
        "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False,
        "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0, "gradient_checkpointing": False,
        "hidden_activation": "gelu", "hidden_size": 768, "initializer_cutoff_factor": 2.0,
        "initializer_range": 0.02, "intermediate_size": 1152, "layer_norm_eps": 1e-05,
        "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192,
        "mlp_bias": False, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False,
        "norm_eps": 1e-05, "num_attention_heads": 12, "num_hidden_layers": 22,
        "pad_token_id": 50283, "position_embedding_type": "absolute", "reference_compile": None,
        "repad_logits_with_grad": False, "sep_token_id": 50282,
        "sparse_pred_ignore_index": -100, "sparse_prediction": False, "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0", "vocab_size": 50368,
    },
    "mdeberta-v3-base": {
        "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-07, "max_position_embeddings": 512, "max_relative_positions": -1,
        "model_type": "deberta-v2", "norm_rel_ebd": "layer_norm", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 0, "pooler_dropout": 0,
        "pooler_hidden_act": "gelu", "pooler_hidden_size": 768, "pos_att_type": "p2c|c2p",
        "position_biased_input": False, "position_buckets": 256, "relative_attention": True,
        "share_att_key": True, "type_vocab_size": 0, "vocab_size": 251000,
    },
    "deberta-v2-xlarge": {
        "attention_head_size": 64, "attention_probs_dropout_prob": 0.1, "conv_act": "gelu",
        "conv_kernel_size": 3, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 6144,
        "layer_norm_eps": 1e-07, "max_position_embeddings": 512, "max_relative_positions": -1,
        "model_type": "deberta-v2", "norm_rel_ebd": "layer_norm", "num_attention_heads": 24,
        "num_hidden_layers": 24, "pos_att_type": "p2c|c2p", "position_biased_input": False,
        "position_buckets": 256, "relative_attention": True, "share_att_key": True,
        "type_vocab_size": 0, "vocab_size": 128100,
    },
    "minilm": {**_BERT, "_name_or_path": "nreimers/MiniLM-L6-H384-uncased"},
    "bert-base-uncased": {
        **_BERT, "architectures": ["BertForMaskedLM"], "model_type": "bert",
        "classifier_dropout": None,
    },
    "bert-base-multilingual": {
        **_BERT, "directionality": "bidi", "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
    },
    "bge-small": {
        **_BERT, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "torch_dtype": "float32",
        "tokenizer_class": "BertTokenizer",
    },
    "bert-of-2019": {
        **_BERT, "finetuning_task": None, "num_labels": 2, "output_attentions": False,
        "output_hidden_states": False, "output_past": True, "pruned_heads": {},
        "torchscript": False, "use_bfloat16": False, "is_decoder": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read(name: str) -> None:
    config = PUBLISHED[name]
    text = config.get("text_config", config)
    assert parse_config(config, name).vocab_size == text.get("vocab_size", 262208)
