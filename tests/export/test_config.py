"""config.json in both forms becomes what the authors need; what they lack is refused by name."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from siren_export.families.bert import Bert
from siren_export.families.deberta import Deberta
from siren_export.families.gemma import Gemma
from siren_export.families.llama import Llama
from siren_export.families.registry import SUPPORTED, parse_config
from siren_export.graph.rotary import Rope, inverse_frequencies
from siren_runtime.errors import CheckpointError, SirenError

DECODER = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"model_type": "gemma3_text"}
PHI = {**DECODER, "model_type": "phi3"}
MODERN = {"model_type": "modernbert"}
DEBERTA = {"model_type": "deberta-v2", "relative_attention": True}
ENCODER = {"model_type": "bert", "vocab_size": 100, "hidden_size": 64, "num_attention_heads": 4}


def decoder(**keys) -> Llama:
    config = parse_config({**DECODER, **keys}, "config.json")
    assert isinstance(config, Llama)
    return config


def decoder_of(**keys) -> Llama:
    config = parse_config(keys, "config.json")
    assert isinstance(config, Llama)
    return config


def gemma3(**keys) -> Gemma:
    config = parse_config({"model_type": "gemma3_text", **keys}, "config.json")
    assert isinstance(config, Gemma)
    return config


def test_both_forms_of_rope_read_alike():
    form_4 = decoder(rope_theta=500.0, rope_scaling=LLAMA3)
    form_5 = decoder(rope_parameters={"rope_theta": 500.0, **LLAMA3})
    assert form_4.rope == form_5.rope == Rope(500.0, "llama3", 8.0, 1.0, 4.0, 32)


def test_both_forms_of_rope_may_stand_together_where_they_agree():
    together = decoder(
        rope_theta=500.0,
        rope_scaling=LLAMA3,
        rope_parameters={"rope_theta": 500.0, **LLAMA3},
        original_max_position_embeddings=32,
    )
    assert together.rope == Rope(500.0, "llama3", 8.0, 1.0, 4.0, 32)


def test_the_original_context_may_stand_beside_the_rope_alone():
    scaling = {key: value for key, value in LLAMA3.items() if not key.startswith("original")}
    assert (
        decoder(
            rope_scaling=scaling, original_max_position_embeddings=64
        ).rope.original_max_position_embeddings
        == 64
    )


def test_rope_scaling_was_once_called_type():
    assert decoder(rope_scaling={"type": "linear", "factor": 2.0}).rope.kind == "linear"


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_scaled_frequencies_are_those_of_transformers(kind):
    scaling = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    if kind == "linear":
        scaling = {k: scaling[k] for k in ("rope_type", "rope_theta", "factor")}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=4096,
        rope_parameters=scaling,
    )
    expected, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    ours = inverse_frequencies(decoder(rope_parameters=scaling).rope, 128)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=2e-6)


@pytest.mark.parametrize(
    ("model_type", "qkv", "output", "mlp", "norm"),
    [
        ("llama", True, True, True, False),
        ("qwen3", True, True, False, True),
        ("qwen2", True, False, False, False),
        ("mistral", False, False, False, False),
    ],
)
def test_bias_flags_count_only_where_the_model_has_them(model_type, qkv, output, mlp, norm):
    config = decoder(
        model_type=model_type, attention_bias=True, mlp_bias=True, num_key_value_heads=2
    )
    assert (config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm) == (
        qkv,
        output,
        mlp,
        norm,
    )


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        ({"model_type": "llama", "sliding_window": 8}, []),
        ({"model_type": "mistral", "sliding_window": 8}, [0, 1, 2, 3]),
        ({"model_type": "mistral", "sliding_window": None}, []),
        ({"model_type": "qwen2", "sliding_window": 8}, []),
        ({"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True}, []),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 8,
                "use_sliding_window": True,
                "max_window_layers": 2,
            },
            [2, 3],
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            [1, 3],
        ),
    ],
)
def test_blocks_have_the_windows_that_the_model_gives_them(keys, windows):
    assert decoder(num_key_value_heads=2, **keys).windows == dict.fromkeys(windows, 8)


@pytest.mark.parametrize(
    ("kind", "context"),
    [("llama", 2048), ("mistral", 131_072), ("qwen2", 32_768), ("qwen3", 32_768)],
)
def test_an_absent_context_is_that_of_transformers(kind, context):
    config = {key: value for key, value in DECODER.items() if key != "max_position_embeddings"}
    config |= {"model_type": kind, "num_key_value_heads": 2, "rope_scaling": {**LLAMA3}}
    del config["rope_scaling"]["original_max_position_embeddings"]
    found = parse_config(config, "config.json")
    assert found.max_position_embeddings == context
    assert found.rope.original_max_position_embeddings == context
    assert AutoConfig.for_model(kind).max_position_embeddings == context


def test_mistral_has_a_window_where_none_is_given():
    config = decoder(model_type="mistral", num_key_value_heads=2)
    assert config.windows == dict.fromkeys(range(4), 4096)


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        ({"model_type": "gemma2"}, [0, 2, 4, 6]),
        ({"model_type": "gemma3_text"}, [0, 1, 2, 3, 4, 6]),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 3}, [0, 1, 3, 4, 6]),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"] * 7}, []),
    ],
)
def test_gemma_slides_in_most_blocks_by_a_pattern(keys, windows):
    config = parse_config({"num_hidden_layers": 7, "sliding_window": 8, **keys}, "config.json")
    assert config.windows == dict.fromkeys(windows, 8)


def test_both_forms_of_gemmas_two_ropes_read_alike():
    linear = {"rope_type": "linear", "factor": 8.0}
    form_4 = gemma3(rope_theta=5e5, rope_local_base_freq=300.0, rope_scaling=linear)
    full = {"rope_theta": 5e5, **linear}
    sliding = {"rope_type": "default", "rope_theta": 300.0}
    form_5 = gemma3(rope_parameters={"full_attention": full, "sliding_attention": sliding})
    assert (form_4.rope, form_4.window_rope) == (form_5.rope, form_5.window_rope)
    assert (form_4.rope.theta, form_4.rope.kind, form_4.window_rope.theta) == (5e5, "linear", 300.0)
    assert (gemma3().rope.theta, gemma3().window_rope.theta) == (1e6, 1e4)


@pytest.mark.parametrize("model_type", ["granite", "smollm3", "olmo2", "phi3"])
def test_heads_may_be_as_wide_as_their_key_says(model_type):
    plain = {**DECODER, "model_type": model_type, "pad_token_id": 0}
    for keys, width in (({}, 16), ({"head_dim": None}, 16), ({"head_dim": 24}, 24)):
        assert parse_config({**plain, **keys}, "config.json").head_dim == width


@pytest.mark.parametrize("width", [-1, 0])
def test_a_deberta_whose_convolution_has_no_width_has_none(width):
    keys = {"conv_kernel_size": width, "conv_act": "mish", "conv_groups": 7}
    config = parse_config({**DEBERTA, **keys}, "config.json")
    assert isinstance(config, Deberta)
    assert config.convolution is None


def test_longrope_is_exact_up_to_the_context_of_its_short_factors():
    factors = {"short_factor": [1.5] * 8, "long_factor": [4.0] * 8}
    config = decoder_of(
        **PHI,
        rope_scaling={"type": "longrope", **factors},
        original_max_position_embeddings=64,
        max_position_embeddings=256,
    )
    assert config.context_length == 64
    config.check_max_length(64, "config.json")
    with pytest.raises(CheckpointError, match=r"max_length 65 exceeds .*64.*longrope"):
        config.check_max_length(65, "config.json")


def test_positions_that_start_behind_the_padding_token_are_fewer():
    config = parse_config({**ENCODER, "model_type": "roberta"}, "config.json")
    config.check_max_length(510, "config.json")
    with pytest.raises(CheckpointError, match="512 less 2, where positions start"):
        config.check_max_length(511, "config.json")


def test_an_encoder_reads_no_further_than_its_positions():
    config = parse_config(ENCODER, "config.json")
    assert isinstance(config, Bert)
    config.check_max_length(512, "config.json")
    with pytest.raises(CheckpointError, match="max_position_embeddings 512"):
        config.check_max_length(513, "config.json")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "supported: " + ", ".join(SUPPORTED)),
        ({**DECODER, "hidden_size": "64"}, "hidden_size"),
        ({**DECODER, "hidden_size": 0}, "hidden_size"),
        ({**DECODER, "num_hidden_layers": -1}, "num_hidden_layers"),
        ({k: v for k, v in DECODER.items() if k != "vocab_size"}, "vocab_size"),
        ({**DECODER, "num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({**DECODER, "head_dim": 15}, "head_dim 15 is odd"),
        ({**DECODER, "rms_norm_eps": 0}, "rms_norm_eps"),
        ({**DECODER, "rope_scaling": {"rope_type": "dynamic"}}, "rope type 'dynamic'"),
        ({**DECODER, "rope_parameters": {"factor": "big"}}, "rope parameters"),
        ({**DECODER, "is_causal": False}, "is_causal is false"),
        ({**DECODER, "model_type": "qwen3", "is_causal": None}, "is_causal is null"),
        (
            {
                **DECODER,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default"},
            },
            "rope_scaling and rope_parameters contradict",
        ),
        (
            {**DECODER, "rope_scaling": {"type": "dynamic"}, "rope_parameters": {"factor": 1.0}},
            "rope type 'dynamic'",
        ),
        (
            {**DECODER, "rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}},
            "rope_theta is 5.0 and 6.0 in rope_parameters",
        ),
        (
            {**DECODER, "rope_scaling": LLAMA3, "original_max_position_embeddings": 64},
            "original_max_position_embeddings is 64 and 32 in rope_scaling",
        ),
        ({**DECODER, "rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({**DECODER, "rope_scaling": {"mrope_section": [1]}}, "mrope_section"),
        ({**DECODER, "layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({**DECODER, "layer_types": ["full_attention"] * 3}, "layer_types has 3 entries"),
        ({**DECODER, "tie_last_hidden_states": False}, "tie_last_hidden_states"),
        ({**DECODER, "per_layer_config": {"1": {}}}, "per_layer_config"),
        ({**DECODER, "transformers_weights": "x.safetensors"}, '["transformers_weights"]'),
        ({**DECODER, "logit_scale": 2, "a_new_key": 1}, '["a_new_key", "logit_scale"]'),
        ({**DECODER, "pad_token_id": 100}, "pad_token_id is 100"),
        ({**DECODER, "use_cache": "yes"}, "use_cache"),
        ({**ENCODER, "pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({**ENCODER, "add_cross_attention": True}, "add_cross_attention"),
        ({**DECODER, "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({**ENCODER, "position_embedding_type": "relative_key"}, "relative_key"),
        ({**ENCODER, "is_decoder": True}, "is_decoder"),
        ({**ENCODER, "num_attention_heads": 5}, "not a multiple of num_attention_heads 5"),
        ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ({**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({**GEMMA, "sliding_window": None}, "sliding_window is null"),
        ({**GEMMA, "layer_types": ["chunked_attention"] * 26}, "layer_types holds 'chunked"),
        ({**GEMMA, "rope_parameters": {"rope_theta": 1.0}}, "rope_parameters has 'rope_theta'"),
        ({**GEMMA, "rope_scaling": {"rope_type": "dynamic"}}, "rope type 'dynamic'"),
        ({**GEMMA, "model_type": "gemma2", "rope_local_base_freq": 1.0}, "rope_local_base_freq"),
        ({**GEMMA, "rope_scaling": {"type": "linear", "factor": 8.0}}, "a type and no rope_type"),
        ({**MODERN, "rope_scaling": {"type": "linear", "factor": 8.0}}, "a type and no rope_type"),
        (
            {**DECODER, "model_type": "mistral", "layer_types": ["full_attention"] * 4},
            "layer_types beside sliding_window",
        ),
        ({**DECODER, "model_type": "granite", "attention_multiplier": 0}, "attention_multiplier"),
        (
            {**DECODER, "model_type": "granite", "attention_multiplier": -0.3},
            "attention_multiplier",
        ),
        ({**DECODER, "model_type": "granite", "multiplier": 2}, '["multiplier"]'),
        ({**DECODER, "model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers has 1"),
        ({**DECODER, "model_type": "olmo2", "clip_qkv": 8.0}, '["clip_qkv"]'),
        ({**PHI, "rope_scaling": {"type": "yarn"}}, "rope type 'yarn'"),
        ({**PHI, "rope_scaling": {"type": "longrope"}}, "short_factor of the longrope is missing"),
        (
            {**PHI, "original_max_position_embeddings": 1, "rope_scaling": {"type": "longrope"}},
            "original_max_position_embeddings of the longrope is 1",
        ),
        (
            {**PHI, "rope_scaling": {"type": "longrope", "rope_type": "default"}},
            "type is 'longrope' and rope_type 'default'",
        ),
        (
            {
                **PHI,
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                    "original_max_position_embeddings": 128,
                },
            },
            "original_max_position_embeddings is 4096 beside the rope",
        ),
        ({**PHI, "partial_rotary_factor": 0.2}, "turns 3 of 16 channels"),
        ({**PHI, "mlp_bias": True}, "mlp_bias is true"),
        ({**ENCODER, "model_type": "roberta", "pad_token_id": None}, "pad_token_id is null"),
        ({**MODERN, "local_attention": 0}, "local_attention"),
        ({**MODERN, "layer_types": ["chunked_attention"] * 22}, "layer_types holds 'chunked"),
        ({**DEBERTA, "conv_kernel_size": 4}, "conv_kernel_size is 4; expected an odd number"),
        ({**DEBERTA, "conv_kernel_size": 3, "conv_groups": 7}, "conv_groups is 7; expected a div"),
        ({**DEBERTA, "conv_kernel_size": 3, "conv_act": "mish"}, "conv_act is 'mish'; expected"),
        ({**DEBERTA, "position_buckets": 1}, "position_buckets is 1"),
        ({**DEBERTA, "relative_attention": False}, "relative_attention is False"),
        ({**DEBERTA, "pos_att_type": ["p2p"]}, "pos_att_type holds 'p2p'"),
        ({**DEBERTA, "embedding_size": 128}, "embedding_size is 128"),
    ],
)
def test_what_the_graphs_lack_is_refused_by_name(config, message):
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        parse_config(config, "config.json")
    assert message in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    model_type=st.sampled_from(SUPPORTED),
    changes=st.dictionaries(
        st.sampled_from([*DECODER, "rope_scaling", "rope_parameters", "head_dim", "layer_types"]),
        _JSON,
        max_size=4,
    ),
)
def test_any_config_is_read_or_refused_with_an_error_of_ours(model_type, changes):
    try:
        parse_config({**DECODER, **changes, "model_type": model_type}, "config.json")
    except SirenError as error:
        assert "config.json" in str(error)  # noqa: PT017
