"""`siren score --trajectories`, and commands that are for texts."""

import json

import pytest

from siren_command import rows, siren
from siren_runtime import Guard
from trajectories import MESSAGES, TOOLS, UNREAD

WHOLE = {"messages": MESSAGES, "tools": TOOLS}


def test_the_command_line_scores_trajectories(trajectory_bundle, tmp_path):
    _, bundle = trajectory_bundle()
    guard = Guard.load(bundle, threads=1)
    data = tmp_path / "runs.jsonl"
    lines = [
        {"id": "a", **WHOLE, "label": 1},
        {"messages": MESSAGES[:3]},
        {"messages": [{"role": "critic"}]},
        {"text": "hello"},
        {"messages": MESSAGES[:3], "promt": 1},
        {"tools": TOOLS},
        {"messages": MESSAGES[:1]},
        "not JSON",
        {**WHOLE, "label": 0},
    ]
    data.write_text("\n".join(line if line == "not JSON" else json.dumps(line) for line in lines))
    run = siren("score", bundle, "--trajectories", data, "--keep", "label", "--threads", 1)
    assert run.exit_code == 1
    first, second, *bad, again = rows(run)
    assert (again["unread"], again["label"]) == (UNREAD, 0)
    whole = guard.score_trajectory(**WHOLE)
    assert (first["id"], first["label"], first["tokens"]) == ("a", 1, whole.tokens)
    assert (first["truncated"], first["omitted"]) == (True, [*whole.omitted])
    assert first["score"] == pytest.approx(whole.score, abs=1e-5)
    assert first["unread"] == UNREAD
    assert run.stderr.count(f"scored without {', '.join(UNREAD)}, which is not read") == 1
    assert second["score"] == pytest.approx(guard.score_trajectory(MESSAGES[:3]).score, abs=1e-5)
    assert [row["line"] for row in bad] == [3, 4, 5, 6, 7, 8]
    for number, match in enumerate(
        ("'critic'", "unknown key 'text'", "'promt'", "no 'messages'", "no turn", "not JSON"), 3
    ):
        assert match in bad[number - 3]["error"]
        assert f"line {number}: " in run.stderr
    assert "6 of 9 trajectories could not be scored" in run.stderr
    table = siren(
        "score", bundle, "--trajectories", "-", "--format", "table", input=json.dumps(WHOLE)
    )
    assert table.exit_code == 0
    assert "ends" in table.stdout
    assert "You are welcome." in table.stdout


def test_the_command_line_refuses_long_trajectories_where_it_is_told_to(
    trajectory_bundle, tmp_path
):
    _, bundle = trajectory_bundle(max_length=64)
    short, data = {"messages": MESSAGES[2:3]}, tmp_path / "runs.jsonl"
    data.write_text("\n".join(map(json.dumps, (WHOLE, short))))
    run = siren("score", bundle, "--trajectories", data, "--long-text", "refuse")
    assert run.exit_code == 1
    refused, read = rows(run)
    assert "the guard reads 64 at once" in refused["error"]
    assert 0 <= read["score"] <= 1


@pytest.mark.parametrize("template", ["chatml", "no-system"])
def test_a_check_of_a_sound_bundle_passes(trajectory_bundle, template):
    run = siren("inspect", trajectory_bundle(template=template)[1], "--check")
    assert run.exit_code == 0, run.stderr
    assert "the engine scores (on cpu)" in run.stdout


def test_the_command_line_refuses_what_is_not_for_trajectories(trajectory_bundle, tmp_path):
    _, bundle = trajectory_bundle()
    data = tmp_path / "runs.jsonl"
    data.write_text(json.dumps(WHOLE))
    for extra in (["text"], ["--input", data], ["--order", 1], ["--spans"]):
        run = siren("score", bundle, "--trajectories", data, *extra)
        assert run.exit_code == 2
        assert "--trajectories has no TEXT" in " ".join(run.stderr.split())
    for name, value in (("input-format", "lines"), ("long-text", "truncate")):
        run = siren("score", bundle, "--trajectories", data, f"--{name}", value)
        assert run.exit_code == 2
        assert f"--{name} goes with texts" in " ".join(run.stderr.split())
    texts = tmp_path / "texts.jsonl"
    labelled = [{"text": "hello", "label": label, "split": "test"} for label in (0, 1)]
    texts.write_text("\n".join(map(json.dumps, labelled)))
    for command in (
        ["score", bundle, "hello"],
        ["stream", bundle],
        ["explain", bundle, "hello"],
        ["evaluate", bundle, texts, "--text", "text"],
        ["evaluate", bundle, texts, "--streaming"],
        ["calibrate", bundle, texts, "--threshold", "best"],
    ):
        run = siren(*command, input="hello\n")
        assert run.exit_code == 1
        assert "trajectories" in run.stderr
    run = siren("inspect", bundle)
    assert "rendered by chat_template.jinja" in " ".join(run.stdout.split())
