"""Training of trajectory heads: from rows of messages to a head that llm-siren scores alike."""

import json

import numpy as np
import pytest
import torch
from siren_guard import AgentSirenGuard

from models import make_artifact
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import Guard, InputError
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.text.reading import AS_LLM_SIREN
from siren_train.data.rows import Columns, read_rows
from siren_train.data.sources import parse_source
from siren_train.fit import trajectory_pipeline
from siren_train.fit.settings import Settings
from siren_train.store.store import FeatureStore
from trajectories import CHATML, TOOLS, make_chat_backbone

SETTINGS = Settings(pooling="residual_last", head="trajectory")


def example(number):
    """A row whose agent does what it was asked, or deletes all."""
    harmful = number % 2 == 1
    action = "delete everything" if harmful else "show the list"
    return {
        "messages": [
            {"role": "user", "content": f"Please look at item {number // 2}."},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "run", "arguments": {"what": action}}}],
            },
        ],
        "tools": TOOLS[1:2] if number % 3 == 0 else None,
        "label": int(harmful),
        "split": ("train", "train", "train", "validation", "test")[number // 2 % 5],
        "id": str(number),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, backbone_folder):
    """The rows' file, the backbone, the store and the head, made by the commands."""
    folder = tmp_path_factory.mktemp("training")
    chat = make_chat_backbone(folder / "chat", backbone_folder("qwen3"), CHATML)
    data = folder / "runs.jsonl"
    data.write_text("\n".join(json.dumps(example(number)) for number in range(80)))
    store = ["extract", chat, data, "-o", folder / "features", "--trajectories", "--threads", 1]
    run = siren(*store, "--max-length", 256)
    assert run.exit_code == 0, run.stderr
    run = siren("train", folder / "features", "-o", folder / "head", "--head", "trajectory")
    assert run.exit_code == 0, run.stderr
    assert "validation macro-F1" in run.stderr
    return data, chat, folder / "features", folder / "head"


def test_a_trained_head_tells_unseen_trajectories_apart(trained, tmp_path):
    data, chat, _, head = trained
    artifact = load_artifact(head)
    assert (artifact.task, artifact.max_length) == ("trajectory", 256)
    export_bundle(artifact, load_checkpoint(chat), tmp_path / "bundle")
    guard = Guard.load(tmp_path / "bundle", threads=1, **AS_LLM_SIREN)
    rows = [row for row in map(json.loads, data.read_text().splitlines()) if row["split"] == "test"]
    given = [{"messages": row["messages"], "tools": row["tools"]} for row in rows]
    results = guard.score_trajectories(given)
    assert [result.is_harmful for result in results] == [row["label"] == 1 for row in rows]
    theirs = AgentSirenGuard.from_pretrained(str(head), device="cpu", dtype=torch.float32)
    for one, result in zip(given[:4], results, strict=False):
        assert theirs.score_trajectory(**one).score == pytest.approx(result.score, abs=1e-4)


def test_a_guard_of_trajectories_is_measured_on_labelled_ones(trained, tmp_path):
    data, chat, _, head = trained
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for number in (8, 48):  # of the 16 test rows, all of which the guard tells apart
        rows[number]["label"] = 1 - rows[number]["label"]
    labelled = tmp_path / "runs.jsonl"
    labelled.write_text("\n".join(map(json.dumps, rows)))
    export_bundle(load_artifact(head), load_checkpoint(chat), tmp_path / "bundle")
    run = siren("evaluate", tmp_path / "bundle", labelled, "-o", tmp_path / "out", "--threads", 1)
    assert run.exit_code == 0, run.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["by_dataset"]["runs"]
    assert (found["rows"], found["harmful"], found["accuracy"]) == (16, 10, 14 / 16)
    calibrate = "calibrate", tmp_path / "bundle", labelled, "--split", "test", "--threads", 1
    run = siren(
        *calibrate, "--threshold", "fpr:0.2", "--tier", "sure=precision:0.9", "--temperature"
    )
    assert run.exit_code == 0, run.stderr
    manifest = load_bundle(tmp_path / "bundle").manifest
    safe = [row for row in rows if row["split"] == "test" and not row["label"]]
    flagged = Guard.load(tmp_path / "bundle", threads=1).score_trajectories(
        [{"messages": row["messages"], "tools": row["tools"]} for row in safe]
    )
    assert manifest.temperature != 1.0
    assert [tier.name for tier in manifest.tiers] == ["sure"]
    assert sum(bool(result.is_harmful) for result in flagged) <= 0.2 * len(flagged)
    run = siren(*calibrate, "--threshold", "best", "--spans", "fpr:0.1")
    assert run.exit_code == 1
    assert "scores trajectories of agents" in run.stderr
    run = siren(*calibrate, "--threshold", "best", "--text", ",")
    assert run.exit_code == 1
    assert "--text ',': a column without a name" in run.stderr
    for options in (("--diluted", "100"), ("--long-text", "windows"), ("--no-spans",)):
        run = siren("evaluate", tmp_path / "bundle", data, *options)
        assert run.exit_code == 1
        assert "scores trajectories of agents" in run.stderr


def test_the_store_holds_the_last_tokens_state_behind_every_block(trained):
    data, _, features, head = trained
    store = FeatureStore.open(features)
    assert store.manifest.poolings == ["residual_last"]
    (row, *_) = read_rows(parse_source(str(data)), Columns(trajectories=True))
    chat = json.loads((head / "siren_config.json").read_text())["base_model"]["model_id"]
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat)
    text = tokenizer.apply_chat_template(json.loads(row.text), tokenize=False)
    with torch.no_grad():
        states = AutoModel.from_pretrained(chat, dtype=torch.float32)(
            **tokenizer(text, return_tensors="pt"), output_hidden_states=True
        ).hidden_states
    found = store.array(row.split, "residual_last")[0]
    for layer in range(len(states) - 2):  # transformers has the last behind the final norm
        np.testing.assert_allclose(found[layer], states[layer + 1][0, -1], rtol=0, atol=1e-3)


def test_one_layer_can_be_asked_for_and_validation_rows_held_out(trained, tmp_path):
    _, _, features, _ = trained
    store = FeatureStore.open(features)
    for held_out in (False, True):
        settings = Settings(
            pooling="residual_last", head="trajectory", hold_out_validation=held_out
        )
        best = trajectory_pipeline.train([store], tmp_path / str(held_out), settings, layer=1)
        assert best.layer == 1
    heads = [load_artifact(tmp_path / str(held_out)).head for held_out in (False, True)]
    assert heads[0].layers == heads[1].layers == (1,)
    assert not np.array_equal(heads[0].weight, heads[1].weight)
    with pytest.raises(InputError, match="has layers 0 to 3"):
        trajectory_pipeline.train([store], tmp_path / "none", SETTINGS, layer=4)


def test_the_same_store_makes_the_same_head(trained, tmp_path):
    _, _, features, head = trained
    trajectory_pipeline.train([FeatureStore.open(features)], tmp_path / "again", SETTINGS)
    for name in ("siren.safetensors", "siren_config.json", "training.md"):
        assert (tmp_path / "again" / name).read_bytes() == (head / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"messages": "not JSON"}, "row 1: "),
        ({"messages": [{"role": "critic"}]}, r"messages\[0\].role is 'critic'"),
        ({"messages": []}, "messages has no turn"),
        ({"messages": 3}, "messages must be a list"),
        ({"tools": [{"description": 3}]}, "description must be a string"),
        ({"label": "bad"}, "expected one of safe, harmful"),
    ],
)
def test_a_row_that_is_no_trajectory_is_refused_by_its_place(tmp_path, change, match):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps({**example(0), **change}))
    with pytest.raises(InputError, match=match) as told:
        list(read_rows(parse_source(str(path)), Columns(trajectories=True)))
    assert "runs.jsonl, row 1" in str(told.value)


def test_messages_may_be_json_in_a_file_without_lists(tmp_path):
    row = example(3)
    plain, written = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    plain.write_text(json.dumps(row))
    written.write_text(json.dumps({**row, "messages": json.dumps(row["messages"])}))
    (one,), (other,) = (
        read_rows(parse_source(str(path)), Columns(trajectories=True)) for path in (plain, written)
    )
    assert one.trajectory == other.trajectory


def test_texts_and_trajectories_do_not_mix(trained, tmp_path):
    data, chat, features, _ = trained
    out = tmp_path / "out"
    run = siren("extract", chat, data, "-o", out, "--trajectories", "--pooling", "both")
    assert run.exit_code == 2
    run = siren("train", features, "-o", out)
    assert run.exit_code == 1
    assert "has no residual_mean of 'train'" in run.stderr
    run = siren("train", features, "-o", out, "--head", "trajectory", "--ablate")
    assert run.exit_code == 2
    content = load_artifact(make_artifact(tmp_path / "content", chat))
    assert content.task == "content"
