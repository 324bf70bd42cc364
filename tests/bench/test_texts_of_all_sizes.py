"""`siren bench large-texts` and `siren bench spans`, on a tiny model."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from models import make_artifact
from siren_bench.cli import app
from siren_bench.engines.process import peak_memory, reset_peak
from siren_bench.speed import large_texts


@pytest.fixture
def head(tmp_path, backbone_folder):
    return make_artifact(tmp_path / "head", backbone_folder("bert"))


def run(tmp_path, *arguments):
    output = tmp_path / "results.json"
    result = CliRunner().invoke(app, [*map(str, arguments), "-o", str(output)])
    assert result.exit_code == 0, result.output
    return json.loads(output.read_text())["results"], result.stdout


def test_a_refusal_is_timed_alone_and_beside_other_callers(tmp_path, head, monkeypatch):
    monkeypatch.setattr(large_texts, "TEXTS", {"2 MB": "<" * 2_000_000, "words": "bread " * 100})
    monkeypatch.setattr(large_texts, "_SECONDS", 0.1)
    (refused, scored), table = run(tmp_path, "large-texts", head, "--rounds", 2)
    assert refused["outcome"].startswith("refused: the text has 2,000,000 bytes")
    assert scored["outcome"] == "scored, 102 tokens"
    for result in (refused, scored):
        assert len(result["seconds"]) == 2
        assert result["callers"] == 8
        assert 0 < result["seconds_beside"] <= result["seconds_beside_most"]
        assert result["neighbour_beside_ms"] > 0
    assert "| 2 MB | refused: " in table


def test_whole_texts_are_timed_beside_their_spans(tmp_path, head):
    lengths = ["--tokens", "20,90", "--rounds", 2, "--threads", 1]
    (short, long), table = run(tmp_path, "spans", head, *lengths)
    assert (short["tokens"], long["tokens"]) == (20, 90)
    assert short["sizes"] == []  # no longer than the smallest span
    assert long["sizes"] == [32]  # in windows of 48 tokens
    assert len(long["plain_ms"]) == len(long["spans_ms"]) == 2
    assert "| 90 | " in table


def test_a_peak_that_was_reset_counts_from_there():
    ballast = np.ones(100_000_000, dtype=np.uint8)
    size, before = ballast.nbytes, peak_memory()
    del ballast
    reset_peak()
    assert peak_memory() < before - 0.9 * size
