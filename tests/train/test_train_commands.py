"""siren extract and siren train, from labelled text to a head, as a person would run them."""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from labelled import make_rows, write_jsonl
from siren_export.heads.base import WEIGHTS_FILE
from siren_export.heads.decision_file import write_decision
from siren_export.heads.registry import load_artifact
from siren_runtime.bundle.heads import Decision
from siren_runtime.commands.siren import app as siren
from siren_train.commands import extract, train
from siren_train.fit import plots
from siren_train.store.store import FeatureStore
from tiny_bundle import make_bundle


def run(app: object, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["rollouts", "extract", "train", "evaluate", "calibrate"])
def test_the_siren_command_finds_it_and_its_help_has_an_example(name: str) -> None:
    (entry_point,) = entry_points(group="siren.commands", name=name)
    assert entry_point.extras == ["train"]
    result = CliRunner().invoke(entry_point.load(), ["--help"])
    assert result.exit_code == 0
    assert f"siren {name}" in result.output


def test_labelled_text_becomes_a_head(
    tmp_path: Path, backbone_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(120))
    backbone, store, head = backbone_folder("bert"), tmp_path / "store", tmp_path / "head"
    arguments = (backbone, data, "-o", store, "--max-length", 48, "--threads", 1)
    result = run(extract.app, *arguments)
    assert result.exit_code == 0, result.output
    arguments = (store, "-o", head, "--trials", 1, "--members", 2, "--share", 0.9, "--ablate")
    result = run(train.app, *arguments)
    assert result.exit_code == 0, result.output
    assert load_artifact(head).model_id == str(backbone)
    written = {path.name for path in head.iterdir()}
    assert written >= {"training.json", "training.md", "layers.png", "ablation.md", "ablation.png"}

    (head / "held-out.md").write_text("of this head")
    write_decision(head, Decision(threshold=0.4))
    result = run(train.app, *arguments[:-1], "--exits", 1)
    assert result.exit_code == 0, result.output
    assert "decision.json: is of these weights, so exports still decide by it" in result.stderr
    found = ("ablation.md", "ablation.png", "held-out.md", "decision.json", "exits")
    others = [head / name for name in found]
    assert all(path.exists() for path in others)  # the weights are the same

    options = ("--trials", 1, "--members", 1, "--share", 0.9)
    with monkeypatch.context() as stopped:
        stopped.setattr(plots, "plot_layers", Mock(side_effect=KeyboardInterrupt))
        assert run(train.app, store, "-o", head, *options).exit_code != 0
    assert not any(path.exists() for path in others)
    assert run(train.app, store, "-o", head, *options).exit_code == 0
    assert not any(path.exists() for path in others)

    narrow = tmp_path / "narrow"
    assert run(train.app, store, "-o", narrow, "--hidden", 7, *options).exit_code == 0
    assert len(load_file(narrow / WEIGHTS_FILE)["network.0.weight"]) == 7


def test_what_the_system_refuses_is_said_in_a_line(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    result = run(siren, "extract", backbone_folder("bert"), data, "-o", data / "store")
    assert result.exit_code == 1
    assert "siren: error: " in result.stderr
    assert "Not a directory" in result.stderr


@pytest.mark.parametrize("classes", ["safe", "safe,safe", "safe,,harmful"])
def test_classes_need_different_names(tmp_path: Path, classes: str) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    result = run(extract.app, tmp_path, data, "-o", tmp_path / "s", "--classes", classes)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        *((command, "--text", ",") for command in ("calibrate", "evaluate", "extract", "rollouts")),
        *(("extract", "--text", names) for names in (" ", "prompt,", "prompt,,response")),
        *(("extract", name, "") for name in ("--label", "--split-column", "--id", "--category")),
    ],
)
def test_a_column_without_a_name_is_refused(
    tmp_path: Path, command: str, option: str, names: str
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    bundle = make_bundle(tmp_path / "bundle")
    given = {
        "calibrate": (bundle, data, "--threshold", "best"),
        "evaluate": (bundle, data),
        "extract": (tmp_path, data, "-o", tmp_path / "out"),
        "rollouts": (data, "-o", tmp_path / "out"),
    }
    result = run(siren, command, *given[command], option, names)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert f"{option} {names.strip()!r}: a column without a name" in line


@pytest.mark.parametrize(
    ("head", "widths"), [("forecast", [8, 16]), ("harm", [0]), ("categories", [8, 0])]
)
def test_widths_that_a_head_cannot_have_are_refused(
    tmp_path: Path, head: str, widths: list[int]
) -> None:
    options = [part for width in widths for part in ("--hidden", width)]
    result = run(train.app, tmp_path, "-o", tmp_path / "out", "--head", head, *options)
    assert result.exit_code == 2
    assert "--hidden" in result.output


def test_a_share_beyond_one_is_refused(tmp_path: Path) -> None:
    assert run(train.app, tmp_path, "-o", tmp_path, "--share", 1.5).exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["polynomial", "--share", 0.9, "--share", 0.2], "--share of a polynomial is one"),
        (["polynomial", "--orders", 1, "--rank", 8], "--rank goes with --orders above 1"),
        (["forecast", "--members", 2], "--members goes with --hidden"),
        (["forecast", "--hidden", 0, "--members", 2], "--members goes with --hidden"),
    ],
)
def test_a_value_that_a_head_would_leave_unread_is_refused(
    tmp_path: Path, options: list[object], message: str
) -> None:
    result = run(train.app, tmp_path, "-o", tmp_path / "out", "--head", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("harm", ["--layer", 2]),
        ("harm", ["--orders", 4]),
        ("categories", ["--neurons", 9]),
        ("trajectory", ["--hidden", 9]),
        ("categories", ["--exits", "1"]),
        ("polynomial", ["--hidden", 8]),
        ("polynomial", ["--openai", "table.json"]),
        ("polynomial", ["--hold-out-validation"]),
        ("forecast", ["--share", 0.5]),
        ("forecast", ["--held-out"]),
        ("forecast", ["--no-half"]),
        ("trajectory", ["--pooling", "mlp_mean"]),
        ("trajectory", ["--members", 2]),
    ],
)
def test_an_option_that_a_head_would_leave_unread_is_refused(
    tmp_path: Path, head: str, options: list[object]
) -> None:
    result = run(train.app, tmp_path, "-o", tmp_path / "out", "--head", head, *options)
    assert result.exit_code == 2
    assert f"{options[0]} goes with --head".replace("--no-", "--") in result.output


@pytest.mark.parametrize("rows", [["0"], ["few"], ["a="], ["=3"], ["3", "4"], ["a=3", "a=4"]])
def test_how_many_rows_is_written_in_one_way(tmp_path: Path, rows: list[str]) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    options = [part for one in rows for part in ("--max-train-rows", one)]
    result = run(extract.app, tmp_path, data, "-o", tmp_path / "s", *options)
    assert result.exit_code == 2
    assert "--max-train-rows is a number above 0" in " ".join(result.stderr.split())


def test_a_store_says_how_many_rows_were_taken_of_each_data_set(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    data = [write_jsonl(tmp_path / f"{name}.jsonl", make_rows(60)) for name in ("one", "two")]
    rows = ("--max-train-rows", 12, "--max-train-rows", "two=30")
    result = run(
        extract.app, backbone_folder("bert"), *data, "-o", tmp_path / "s", "--max-length", 48, *rows
    )
    assert result.exit_code == 0, result.output
    manifest = FeatureStore.open(tmp_path / "s").manifest
    assert (manifest.max_train_rows, manifest.max_train_rows_of) == (12, {"two": 30})
    assert manifest.splits["train"] == 42


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["calibrate", "--threshold", "0.5", "--loss", "1"], "--loss goes with --cascade"),
        (["calibrate", "--threshold", "0.5", "--diluted", "9"], "--diluted goes with --spans"),
        (["calibrate", "--spans", "0.5", "--diluted", "9"], "--diluted goes with --spans"),
        (["evaluate", "data.jsonl", "--words", "3"], "--words goes with --streaming"),
        (["evaluate", "data.jsonl", "--pool", "response"], "--pool goes with --streaming"),
        (
            ["evaluate", "data.jsonl", "--streaming", "--labels", "hate"],
            "--streaming has no --labels",
        ),
        (
            ["evaluate", "data.jsonl", "--streaming", "--long-text", "truncate"],
            "--streaming has no --labels, --long-text and --spans",
        ),
        (
            ["evaluate", "data.jsonl", "--streaming", "--no-spans"],
            "--streaming has no --labels, --long-text and --spans",
        ),
        (["evaluate", "data.jsonl", "--disguised", "--labels", "hate"], "have no --labels"),
        (
            ["evaluate", "data.jsonl", "--diluted", "9", "--long-text", "windows"],
            "without --long-text",
        ),
        (
            ["evaluate", "data.jsonl", "--diluted", "9", "--spans"],
            "without --long-text and --spans",
        ),
    ],
)
def test_options_that_would_be_left_unread_are_refused(command: list[str], message: str) -> None:
    name, *options = command
    result = run(siren, name, "bundle", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_what_cannot_be_used_is_said_before_any_row_is_read(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "recipe" / "bundle")
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    for arguments, message in (
        (("evaluate", bundle, data, "-o", data), "data.jsonl: a file is there"),
        (("evaluate", bundle, tmp_path), "a folder; name its files"),
        (("evaluate", bundle.parent, data), f"its bundle is {bundle}"),
        (("calibrate", bundle, "--threshold", "1.5"), "'1.5' is no rule"),
        (("calibrate", bundle, "--tier", "block=fpr:2"), "'fpr:2' is no rule"),
    ):
        result = run(siren, *arguments)
        assert result.exit_code == (2 if "no rule" in message else 1), arguments
        assert message in result.stderr
        assert "labelled text is needed" not in result.stderr
    (tmp_path / "pair" / "one").mkdir(parents=True)
    (tmp_path / "pair" / "ensemble.json").write_text('{"format_version": 1, "members": ["a", "b"]}')
    result = run(siren, "explain", tmp_path / "pair", "hello")
    assert result.exit_code == 1
    assert "the folder is an ensemble" in result.stderr
