"""The buckets of DeBERTa's distances are those of transformers, to the last one."""

import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from siren_export.families.deberta import Deberta, distance_rows
from siren_export.families.registry import parse_config


@pytest.mark.parametrize(
    ("buckets", "furthest"), [(256, 512), (256, 1024), (16, 128), (8, 24), (32, 1000), (50, 333)]
)
def test_distances_fall_into_the_buckets_of_transformers(buckets, furthest):
    config = parse_config(
        {
            "model_type": "deberta-v2",
            "relative_attention": True,
            "position_buckets": buckets,
            "max_relative_positions": furthest,
        },
        "config.json",
    )
    assert isinstance(config, Deberta)
    distances = torch.arange(1500, -1501, -1)
    expected = make_log_bucket_position(distances, buckets, furthest).long() + buckets
    found = distance_rows(config, 1500)
    np.testing.assert_array_equal(found, expected.clamp(0, 2 * buckets - 1).numpy())


def test_without_buckets_each_distance_has_a_row_up_to_the_furthest():
    config = parse_config(
        {"model_type": "deberta-v2", "relative_attention": True, "max_position_embeddings": 4},
        "config.json",
    )
    assert isinstance(config, Deberta)
    assert distance_rows(config, 6).tolist() == [7, 7, 7, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
