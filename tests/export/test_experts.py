"""A model with experts is refused with what it would need; one without is not called so."""

import pytest

from siren_export.families.registry import SUPPORTED, parse_config
from siren_runtime.errors import CheckpointError


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mixtral"},
        {"model_type": "qwen3_moe"},
        {"model_type": "gpt_oss"},
        {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 16}},
        {"model_type": "arctic", "num_local_experts": 128},
        {"model_type": "dots1", "n_routed_experts": 128},
        {"model_type": "qwen3_next", "num_experts": 512},
        {"model_type": "longcat_flash", "n_routed_experts": 512},
        {"model_type": "granitemoehybrid", "num_local_experts": 62},
        {"model_type": "of_tomorrow", "moe_num_experts": 4},
        {"model_type": "with_images", "text_config": {"num_experts": 8}},
        {"model_type": "with_sound", "text_config": {"model_type": "mixtral"}},
    ],
    ids=lambda config: config["model_type"],
)
def test_mixtures_of_experts_are_refused_with_what_they_would_need(config):
    message = r"is a mixture of experts.*router.*give that folder as --backbone"
    with pytest.raises(CheckpointError, match=message):
        parse_config(config, "config.json")


def test_a_kind_that_may_have_experts_is_not_told_that_it_has_some():
    config = {"model_type": "granitemoehybrid", "num_local_experts": 0}
    with pytest.raises(CheckpointError, match=r"may have experts or Mamba layers") as caught:
        parse_config(config, "config.json")
    assert "is a mixture" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2"},
        {"model_type": "aya_vision", "text_config": "cohere2"},
        {"model_type": "gemma4", "text_config": {"num_experts": None}},
        {"model_type": "of_tomorrow", "num_experts": 0},
    ],
    ids=str,
)
def test_others_are_refused_with_the_list_of_what_there_is(config):
    with pytest.raises(CheckpointError, match="supported: " + ", ".join(SUPPORTED)):
        parse_config(config, "config.json")
