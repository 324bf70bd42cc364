"""siren bench stream on a tiny shape: what it writes, and how it extrapolates."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from siren_bench.cli import app
from siren_bench.stream import Plan, memory_bandwidth, summarise


def test_the_command_measures_records_and_draws(tmp_path, tiny_name):
    output = tmp_path / "stream.json"
    arguments = ["stream", tiny_name, "--tokens", "40", "--long-tokens", "64", "--threads", "1"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(output)])
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(output.read_text())["results"]
    assert len(entry["single_s"]) == 40
    assert len(entry["long"]) == 4
    assert entry["max_score_difference"] < 1e-5
    assert all(value > 0 for value in entry["summary"].values())
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "extrapolated" in result.stdout


def test_totals_of_llm_siren_are_interpolated_between_the_sampled_lengths():
    plan = Plan(tokens=32, chunk=16, early=4, late=28, peers=("float32",))
    lengths = {1: [1.0], 32: [32.0]}
    results = {
        "single_s": [0.5] * 32,
        "chunk_s": [2.0] * 2,
        "one_step_s": [1.0],
        "batch_step_s": [4.0],
        "bytes_per_stream": 1,
        "weight_bytes": 10,
        "bandwidth_bytes_per_s": 100.0,
        "llm_siren_float32_s": lengths,
        "memory_bytes": {"scoring": 1, "streaming": 1, "switched": 1, "switching_peak": 2},
    }
    summary = summarise(results, plan)
    assert summary["float32_every_token_s"] == pytest.approx(sum(range(1, 33)))
    assert summary["float32_every_token_ratio"] == pytest.approx(sum(range(1, 33)) / 16)
    assert summary["float32_every_chunk_s"] == pytest.approx(16 + 32)
    assert summary["chunked_to_single"] == pytest.approx(0.25)
    assert summary["batch_to_one"] == pytest.approx(8)
    assert summary["floor_reached"] == pytest.approx(0.2)


def test_bandwidth_is_that_of_a_memory():
    assert 1e9 < memory_bandwidth(1) < 1e12
    assert np.isfinite(memory_bandwidth(2))
