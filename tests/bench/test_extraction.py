"""siren bench extraction: the features of the extractor are those of transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models import make_artifact
from siren_bench.cli import app
from siren_bench.making.extraction import largest_relative_difference
from texts import TEXTS


@pytest.mark.parametrize("backbone", ["bert", "qwen3"])
def test_both_pool_the_same_features_and_are_timed_in_every_round(
    backbone: str, backbone_folder, tmp_path: Path
) -> None:
    head = make_artifact(tmp_path / "guard", backbone_folder(backbone))
    corpus, output = tmp_path / "chats.jsonl", tmp_path / "results" / "extraction.json"
    rows = [{"text": text} for text in TEXTS if text.strip()]
    corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["--texts", "20", "--rounds", "2", "--threads", "1", "-o", str(output)]
    result = CliRunner().invoke(app, ["extraction", str(head), str(corpus), *options])
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    ours, theirs = record["results"]
    assert (ours["extractor"], theirs["extractor"]) == ("siren-edge fp32", "transformers float32")
    assert ours["max_relative_difference"] == 0
    assert theirs["max_relative_difference"] < 1e-4
    assert len(ours["samples_s"]) == len(theirs["samples_s"]) == 2
    assert record["versions"]["transformers"]
    assert output.with_suffix(".md").read_text().startswith("| extractor |")


def test_the_difference_is_that_of_the_worst_text_and_layer() -> None:
    expected = np.ones((2, 3, 4), np.float32)
    found = expected.copy()
    found[1, 2] *= np.float32(1.5)
    assert largest_relative_difference(found, expected) == pytest.approx(0.5)
