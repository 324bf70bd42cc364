"""The bench of a generator that guards itself times every subject in every round."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backbones import BackboneSpec
from generators import make_generator, need_genai
from models import make_artifact, make_backbone
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.graft.graft import graft
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.generation.folder import read_folder
from siren_runtime.generation.manifest import MANIFEST_FILE, TrainedOn

need_genai()


@pytest.mark.parametrize("beside", [False, True])
def test_every_subject_is_compared_with_the_plain_one_of_its_round(
    beside: bool, tmp_path: Path
) -> None:
    backbone = make_backbone(tmp_path / "backbone", BackboneSpec("llama"))
    plain = make_generator(backbone, tmp_path / "plain", "fp32", "cpu")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    graft(plain, artifact, tmp_path / "grafted", foreign=True, verify=False)
    spans = [{"tokens": 4, "threshold": 0.5}] if beside else []
    _decide(tmp_path / "grafted", threshold=0.01, spans=spans)  # nothing is to decide all the same
    options = ["--tokens", 20, "--rounds", 2, "--threads", 1, "--prompt", "Tell me of bread"]
    options += ["--every", "2,8", "--beside", 12]
    if beside:
        export_bundle(artifact, load_checkpoint(str(backbone)), tmp_path / "bundle")
        options += ["--bundle", tmp_path / "bundle"]
    record = tmp_path / "record.json"
    folders = (plain, tmp_path / "grafted")
    result = siren("bench", "same-pass", *folders, *options, "-o", record)
    assert result.exit_code == 0, result.output
    results = json.loads(record.read_text())["results"]
    assert len(results) == (7 if beside else 6)
    assert all(len(one["seconds_per_token"]) == 2 for one in results)
    assert results[0]["to_plain"] == [1.0, 1.0]
    judged = "head, threshold and spans every 8" if beside else "head and threshold every 8"
    assert judged in result.stdout
    assert [f"every {number} tokens" in result.stdout for number in (1, 2, 8)] == [0, 1, 1]
    assert ("guard's stream" in result.stdout) == beside
    if beside:
        result = siren("bench", "same-pass", *folders, *options, "--beside", 3)
        assert result.exit_code == 1
        assert "ended within 6 tokens" in result.stderr


def test_a_head_of_plain_text_is_timed_without_the_chat_template(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path / "backbone", BackboneSpec("llama"))
    plain = make_generator(backbone, tmp_path / "plain", "fp32", "cpu")
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
    own = TrainedOn(engine=read_folder(plain).digest(), text="plain")
    graft(plain, replace(artifact, trained_on=own), tmp_path / "grafted", verify=False)
    options = ("--tokens", 9, "--rounds", 1, "--threads", 1, "--every", 1, "--prompt", "Bread")
    command = ("bench", "same-pass", plain, tmp_path / "grafted", *options)
    result = siren(*command)
    assert result.exit_code == 1
    assert "trained on plain text" in result.stderr
    result = siren(*command, "--no-chat", "-o", tmp_path / "record.json")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("every", ["0", "1,", "two"])
def test_a_cadence_that_is_none_is_refused(every: str, tmp_path: Path) -> None:
    result = siren("bench", "same-pass", tmp_path, tmp_path, "--every", every)
    assert result.exit_code == 1
    assert "--every is whole numbers" in result.stderr


def _decide(grafted: Path, **decision: Any) -> None:
    """Write how the head of a grafted folder decides."""
    path = grafted / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    manifest["decisions"]["harm"] |= decision
    path.write_text(json.dumps(manifest))


def _grafted_and_bundle(folder: Path, precision: str) -> Path:
    """Make `grafted`, a generator, and `bundle`, a float32 guard; return a file of responses."""
    backbone = make_backbone(folder / "backbone", BackboneSpec("llama"))
    plain = make_generator(backbone, folder / "plain", precision, "cpu")
    artifact = load_artifact(make_artifact(folder / "head", backbone))
    graft(plain, artifact, folder / "grafted", foreign=True, verify=False)
    export_bundle(artifact, load_checkpoint(str(backbone)), folder / "bundle")
    data = folder / "responses.jsonl"
    rows = [{"prompt": f"Tell me of {n}", "response": "Bread is " * n} for n in range(1, 6)]
    data.write_text("\n".join(map(json.dumps, rows)))
    return data


def test_verdicts_of_the_same_pass_are_compared_with_the_float32_stream(tmp_path: Path) -> None:
    data, record = _grafted_and_bundle(tmp_path, "fp32"), tmp_path / "record.json"
    command = ["bench", "same-pass-verdicts", tmp_path / "grafted", data, "-o", record]
    bundle = ("--bundle", tmp_path / "bundle")
    result = siren(*command, *bundle, "--responses", 4)
    assert result.exit_code == 0, result.output
    results = json.loads(record.read_text())["results"]
    assert len(results) == 4
    assert all(one["max_difference"] < 1e-4 for one in results)
    assert "4 of 4 (100.0%)" in result.stdout
    _decide(tmp_path / "grafted", threshold=1.0, responses={"threshold": 0.0})
    assert siren(*command, *bundle).exit_code == 0
    results = json.loads(record.read_text())["results"]
    assert {one["own_stops_at"] for one in results} == {0}  # by the responses' threshold
    assert {(one["prompt_threshold"], one["threshold"]) for one in results} == {(1.0, 0.0)}
    result = siren(*command)
    assert result.exit_code == 1
    assert "in float32 already" in result.stderr
    data.write_text(json.dumps({"text": "no response"}))
    assert siren(*command, *bundle).exit_code == 1


def test_verdicts_of_int4_are_compared_with_its_own_weights_in_float32(tmp_path: Path) -> None:
    data, record = _grafted_and_bundle(tmp_path, "int4"), tmp_path / "record.json"

    def mean_difference(*reference: str | Path) -> float:
        command = ("bench", "same-pass-verdicts", tmp_path / "grafted", data, "-o", record)
        result = siren(*command, *reference)
        assert result.exit_code == 0, result.output
        results = json.loads(record.read_text())["results"]
        return float(np.mean([one["max_difference"] for one in results]))

    before = sorted(path.name for path in tmp_path.iterdir())
    rounded_activations = mean_difference()
    assert 0 < rounded_activations < mean_difference("--bundle", tmp_path / "bundle")
    assert sorted({*(path.name for path in tmp_path.iterdir()), "responses.jsonl"}) == sorted(
        {*before, "record.json", "record.md"}
    )


def test_verdicts_are_compared_by_the_spans_that_the_folder_goes_by(tmp_path: Path) -> None:
    data, record = _grafted_and_bundle(tmp_path, "int4"), tmp_path / "record.json"
    command = ("bench", "same-pass-verdicts", tmp_path / "grafted", data, "-o", record)

    def stops(*options: Any) -> tuple[set[tuple[Any, ...]], str]:
        result = siren(*command, *options)
        assert result.exit_code == 0, result.output
        keys = ("own_stops_at", "float32_stops_at", "own_is_harmful", "float32_is_harmful")
        rows = json.loads(record.read_text())["results"]
        return {tuple(row[key] for key in keys) for row in rows}, result.stdout

    never, always = ([{"tokens": 4, "threshold": threshold}] for threshold in (1.0, 0.0))
    responses = {"threshold": 1.0, "spans": always}
    _decide(tmp_path / "grafted", threshold=1.0, spans=never, responses=responses)
    found, table = stops()
    assert found == {(0, 0, True, True)}  # prompts have such spans already
    assert "by score and spans" in table
    _decide(tmp_path / "grafted", spans=always)
    assert stops()[0] == {(-1, -1, True, True)}
    found, table = stops("--bundle", tmp_path / "bundle")
    assert found == {(None, None, False, False)}
    assert "by score alone" in table
