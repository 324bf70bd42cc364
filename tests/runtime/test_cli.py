"""The siren command and siren inspect, run as a person or a pipe would run them."""

import importlib.metadata
import json
import os
import pty
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers

from saved_plans import save
from siren_command import TIMEOUT_S, run_without, siren, start
from siren_runtime import __version__
from siren_runtime.bundle.graphs import score_graph
from siren_runtime.bundle.heads import OPENAI_KEYS, HeadSpec
from siren_runtime.bundle.reader import load_bundle
from tiny_bundle import edit_manifest, seal

# --- siren


def test_version() -> None:
    assert siren("--version").stdout == f"siren-edge {__version__}\n"
    assert __version__ == importlib.metadata.version("siren-edge")


def test_help_lists_the_subcommands_with_a_line_each() -> None:
    result = siren("--help")
    assert result.exit_code == 0
    for name in ("export", "inspect", "score"):
        assert f" {name} " in result.stdout


@pytest.mark.parametrize("command", [[], ["score"], ["inspect"]])
def test_every_help_has_an_example(command: list[str]) -> None:
    assert "Example: siren" in siren(*command, "--help").stdout.replace("tail -f chat.jsonl | ", "")


@pytest.mark.parametrize(
    ("modules", "command", "extra"),
    [
        ("onnxruntime tensorrt tensorrt_rtx", "score", "cpu"),
        ("onnxruntime tensorrt tensorrt_rtx", "stream", "cpu"),
        ("siren_export.commands.export", "export", "export"),
        *((module, "export", "export") for module in ("onnx_ir", "ml_dtypes", "safetensors")),
        *((module, "bench", "bench") for module in ("matplotlib", "psutil")),
        ("sklearn", "train", "train"),
        ("scipy matplotlib sklearn torch optuna pyarrow", "extract", "train"),
        ("scipy matplotlib sklearn torch optuna pyarrow", "evaluate", "train"),
        ("scipy matplotlib sklearn torch optuna pyarrow", "calibrate", "train"),
    ],
)
def test_a_part_that_is_not_installed_says_which_extra_brings_it(
    modules: str, command: str, extra: str
) -> None:
    hint = f"pip install '.[{extra}]'"
    uses = [command], [command, "--help"], [command, "x", "--option", "y"]
    listed, *refused = run_without(modules, ["--help"], *uses)
    assert (listed.returncode, listed.stderr) == (0, "")
    help_text = listed.stdout
    assert re.search(rf" {command} +Not installed: {re.escape(hint)} ", help_text)
    for result in refused:
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.startswith(f"siren: error: siren {command} is not installed")
        assert f"; {hint} in a checkout of siren-edge" in result.stderr


@pytest.mark.skipif(
    not any(map(find_spec, ("tensorrt", "tensorrt_rtx"))), reason="there is no TensorRT"
)
@pytest.mark.parametrize("command", ["score", "stream"])
def test_what_runs_on_plans_needs_no_onnxruntime(command: str, bundle: Path) -> None:
    plan = [command, bundle, "--backend", "tensorrt-rtx"]
    used, run = run_without("onnxruntime", [command, "--help"], plan)
    assert used.returncode == 0
    assert run.returncode == 1  # there is no plan
    assert "onnxruntime" not in run.stderr


def test_inspect_works_without_an_engine_until_it_must_score(bundle: Path) -> None:
    plain, result = run_without("onnxruntime", ["inspect", bundle], ["inspect", bundle, "--check"])
    assert plain.returncode == 0
    assert result.returncode == 1
    assert "pip install '.[cpu]'" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["score"],
        ["score", "B", "text", "--nonsense"],
        ["score", "B", "text", "--threshold", "nan"],
        ["score", "B", "text", "--threshold", "2"],
        ["score", "B", "text", "--threads", "0"],
        ["score", "B", "text", "--batch-size", "0"],
        ["score", "B", "text", "--backend", "abacus"],
        ["score", "B", "text", "--format", "xml"],
        ["score", "B", "text", "--input", "-"],
        ["score", "B", "text", "--features", "--format", "table"],
        ["score", "B", "text", "--keep", "label"],
        ["score", "B", "--keep", "score"],
        ["score", "B", "--keep", "label", "--input-format", "lines"],
        ["score", "B", "--keep", "label", "--format", "table"],
        ["score", "B", "--input", "no/such/file"],
        ["score", "B", "--input", "."],
        ["inspect"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = siren(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_of_any_encoding_shows_what_that_lacks_as_codes(
    encoding: str, own_bundle: Path
) -> None:
    def shown(command: str, *options: str) -> str:
        process = start(command, own_bundle, *options, env=environment)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, stderr) == (0, b"")
        return stdout.decode("utf-8" if "json" in options[0] else encoding)

    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"}
    edit_manifest(own_bundle, lambda manifest: manifest["backbone"].update(id="é/模型"))
    for output in shown("inspect", "--check"), shown("score", "é/模型", "--format", "table"):
        name = "é/模型".encode(encoding, "backslashreplace").decode(encoding)
        assert name in output
    assert json.loads(shown("inspect", "--json"))["backbone"]["id"] == "é/模型"


def test_a_warning_is_one_line_that_steers_no_terminal(own_bundle: Path) -> None:
    folder = own_bundle.rename(own_bundle.parent / "\x1b[31m\n")
    save(load_bundle(folder))
    process = start("score", folder, "hello")
    stderr = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 0
    assert b"\\x1b[31m is used: " in stderr
    assert b"\x1b" not in stderr
    assert stderr.count(b"\n") == 1


def test_no_text_and_a_terminal_for_standard_input_is_wrong_usage(bundle: Path) -> None:
    _, terminal = pty.openpty()
    process = start("score", bundle, stdin=terminal)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    os.close(terminal)
    assert process.returncode == 2
    assert b"nothing to score" in stderr


# --- siren inspect


def test_inspect_shows_what_the_bundle_is(bundle: Path) -> None:
    result = siren("inspect", bundle)
    assert result.exit_code == 0
    for fact in (
        "example/bag-of-bytes",
        "2 kept of 4",
        "residual_mean",
        "llm-siren-0.2",
        "fp32 for onnxruntime",
        "score.onnx",
        "attention_mask int64",
        "weights.bin",
        "unverified: made by a test",
        "siren-edge 0.1.0",
        "has its size",
    ):
        assert fact in result.stdout


def test_inspect_check_says_what_it_checked(bundle: Path) -> None:
    assert "has its SHA-256" in siren("inspect", bundle, "--check").stdout


def test_inspect_check_passes_though_the_tokenizer_lacks_its_text(own_bundle: Path) -> None:
    model = tokenizers.models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(own_bundle / "tokenizer.json"))
    seal(own_bundle)
    edit_manifest(own_bundle, lambda manifest: manifest.update(threshold=1.0))
    assert "is unknown to the tokenizer" in siren("score", own_bundle, "Hello").stderr
    result = siren("inspect", own_bundle, "--check")
    assert result.exit_code == 0, result.stderr
    assert "the engine scores (on cpu)" in result.stdout


def test_inspect_escapes_what_would_steer_a_terminal(own_bundle: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["files"]["\x1b[31mx"] = {"size": 0, "sha256": "0" * 64}
        manifest["graphs"]["score"]["inputs"][0]["shape"] = ["\x1b[31m[/b]", "sequence"]

    (own_bundle / "\x1b[31mx").touch()
    edit_manifest(own_bundle, edit)
    result = siren("inspect", own_bundle)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert result.stdout.count("\\x1b[31m") == 2


def test_inspect_json_is_the_manifest(bundle: Path) -> None:
    result = siren("inspect", bundle, "--json")
    assert json.loads(result.stdout) == json.loads((bundle / "guard.json").read_bytes())


@pytest.mark.parametrize(
    ("tables", "rows"),
    [
        ({"harm": "hate"}, ["not covered +hate"]),
        (
            {"harm": "hate", "kinds": "sexual"},
            ["not covered by harm +hate", "not covered by kinds +sexual"],
        ),
    ],
)
def test_inspect_shows_which_of_openais_keys_each_head_leaves_uncovered(
    own_bundle: Path, tables: dict[str, str], rows: list[str]
) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        heads, graph = manifest["heads"], manifest["graphs"]["score"]
        heads["kinds"] = {**heads["harm"], "labels": ["mild", "bad"]}
        heads["harm"]["labels"] = ["good", "bad"]
        for name, missing in tables.items():
            heads[name]["openai"] = {key: ["bad"] for key in OPENAI_KEYS} | {missing: []}
        manifest["decisions"] = {"kinds": {"threshold": 0.5}}
        contract = score_graph(msgspec.convert(heads, dict[str, HeadSpec]))
        graph["outputs"] = msgspec.to_builtins([*contract.outputs])

    edit_manifest(own_bundle, edit)
    found = siren("inspect", own_bundle).stdout
    for row in rows:
        assert re.search(rf"^{row} *$", found, re.MULTILINE)
