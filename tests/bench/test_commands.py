"""The commands of siren bench, on tiny models: what they write and what they refuse."""

import hashlib
import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from models import make_artifact
from siren_bench.cli import app
from siren_bench.commands.finish import finish
from siren_bench.engines.process import in_fresh_process, peak_memory
from siren_bench.records.progress import say
from siren_bench.records.record import write_record
from siren_runtime import InputError


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


ENGINES = ["siren-edge fp32", "llm-siren float32", "llm-siren bfloat16"]


def read(path):
    record = json.loads(path.read_text())
    assert {"cpu", "logical_cores", "memory_bytes", "system"} <= record["machine"].keys()
    assert {"siren-edge", "onnxruntime", "torch", "llm-siren"} <= record["versions"].keys()
    assert record["command"]
    return record


def test_the_siren_command_finds_bench():
    (entry_point,) = entry_points(group="siren.commands", name="bench")
    assert entry_point.load() is app


def test_synthesize_writes_a_backbone_and_a_head(tmp_path, tiny_name):
    folder = tmp_path / "a[" / "b]"
    result = run("synthesize", tiny_name, "-o", folder)
    assert result.exit_code == 0, result.output
    assert str(folder) in result.stderr.replace("\n", "")
    assert (folder / "backbone" / "model.safetensors").is_file()
    assert (folder / "head" / "siren.safetensors").is_file()


def test_export_memory_records_peak_time_and_sizes(tmp_path, tiny_name):
    output = tmp_path / "results" / "memory.json"
    result = run("export-memory", tiny_name, "--keep", tmp_path / "kept", "-o", output)
    assert result.exit_code == 0, result.output
    (entry,) = read(output)["results"]
    assert entry["shape"] == tiny_name
    assert entry["precision"] == "fp16"
    assert 20e6 < entry["peak_bytes"] < 500e6
    assert 0 < entry["seconds"] < 60
    rotary_tables = 4e6  # of the streaming graph, for the shape's whole context
    assert 0 < entry["bundle_bytes"] < 2 * entry["checkpoint_bytes"] + rotary_tables
    assert f"| {tiny_name} | fp16 |" in result.stdout
    assert output.with_suffix(".md").read_text().startswith(result.stdout.rstrip("\n"))
    assert (tmp_path / "kept" / tiny_name / "backbone" / "config.json").is_file()


def test_a_table_whose_record_cannot_be_written_is_shown_all_the_same(capsys):
    with pytest.raises(OSError, match="No space left"):
        finish(Path("/dev/full"), "latency", {}, [], "| a table |")
    assert capsys.readouterr().out == "| a table |\n"


def test_hostile_names_steer_no_terminal(capsys):
    say("\x1b[31m [/b]")
    with pytest.raises(OSError, match="No space left"):
        finish(Path("/dev/full"), "latency", {"missing": {"peer": "\x1b[31m"}}, [], "| a table |")
    shown = capsys.readouterr()
    assert shown.err == "\\x1b[31m [/b]\n"
    assert "- peer: \\x1b[31m\n" in shown.out
    assert "\x1b" not in shown.out


def test_heads_are_timed_beside_one_head_whole_and_growing(tmp_path, tiny_name):
    output = tmp_path / "heads.json"
    kinds = ("linear", "labels", "forecast", "polynomial")
    options = ["--kinds", ",".join(kinds), "--counts", "3", "--tokens", "8,16", "--rounds", "2"]
    result = run("heads", tiny_name, *options, "--threads", "1", "-o", output)
    assert result.exit_code == 0, result.output
    results = read(output)["results"]
    assert [(r["kind"], r["heads"], r["what"]) for r in results] == [
        (kind, 3, what)
        for kind in kinds
        for what in ("8 tokens", "16 tokens", "one new token of a stream")
    ]
    assert all(len(r["one_ms"]) == len(r["several_ms"]) == 2 for r in results)
    spread = r"\d+\.\d{3}x \(\d+\.\d{3} to \d+\.\d{3}\)"
    assert re.search(rf"\| linear \| 3 \| 8 tokens \| \S+ \| \S+ \| {spread} \|", result.stdout)
    assert run("heads", tiny_name, "--kinds", "odd").exit_code == 2
    assert run("heads", tiny_name, "--counts", "1").exit_code == 2


@pytest.mark.parametrize("missing", ["command", "machine", "settings"])
def test_a_result_that_lacks_a_part_is_refused(tmp_path, missing):
    path = tmp_path / "latency-minilm.json"
    write_record(path, "latency", {}, [], "")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: record[key] for key in record.keys() - {missing}}))
    result = run("report", "minilm", "--results", tmp_path)
    assert isinstance(result.exception, InputError)
    assert "not a result of siren bench" in str(result.exception)


def test_latency_interleaves_the_engines_and_records_every_sample(tmp_path, backbone_folder):
    output = tmp_path / "latency.json"
    head = make_artifact(tmp_path / "head", backbone_folder("bert"))
    arguments = ("--tokens", "8,4", "--rounds", 3, "--threads", 1, "--no-roofline", "-o", output)
    result = run("latency", head, *arguments)
    assert result.exit_code == 0, result.output
    record = read(output)
    assert record["settings"]["threads"] == 1
    assert record["settings"]["missing"] == {}
    sha256 = hashlib.sha256((head / "siren.safetensors").read_bytes()).hexdigest()
    assert record["settings"]["weights_sha256"] == {"harm": sha256}
    assert [engine["name"] for engine in record["settings"]["engines"]] == ENGINES
    assert "llm-siren" in record["settings"]["engines"][1]["versions"]
    entries = record["results"]
    assert [(e["tokens"], e["engine"]) for e in entries] == [
        (tokens, engine) for tokens in (4, 8) for engine in ENGINES
    ]
    for ours, float32, bfloat16 in (entries[:3], entries[3:]):
        assert ours["ratio"] == 1.0
        assert ours["score"] == pytest.approx(float32["score"], abs=1e-4)
        assert ours["score"] == pytest.approx(bfloat16["score"], abs=0.1)
        for entry in (ours, float32, bfloat16):
            assert len(entry["samples_s"]) == 3
            assert entry["median_s"] == np.median(entry["samples_s"])
            assert entry["median_s"] <= entry["p95_s"] <= max(entry["samples_s"])
            ratios = np.divide(entry["samples_s"], ours["samples_s"])
            assert entry["ratio"] == pytest.approx(np.median(ratios))
    assert result.stdout.splitlines()[2].startswith("| siren-edge fp32 | ")


def test_by_default_latency_is_measured_as_far_as_the_head_reads(tmp_path, backbone_folder):
    output = tmp_path / "latency.json"
    head = make_artifact(tmp_path / "head", backbone_folder("bert"))  # 48 tokens at most
    arguments = ("--rounds", 1, "--warm-up", 0, "--peers", "", "--no-roofline", "-o", output)
    result = run("latency", head, *arguments)
    assert result.exit_code == 0, result.output
    assert [entry["tokens"] for entry in read(output)["results"]] == [8, 32]
    assert "length: 1; before them, not counted: 0" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("synthesize", "qwen9", "-o", "x"), "not one of qwen3-0.6b"),
        (("export-memory", "qwen9"), "not one of qwen3-0.6b"),
        (("export-memory", "qwen3-0.6b", "--precision", "fp64"), "not one of fp32"),
        (("latency", "minilm", "--tokens", "8,many"), "--tokens must be like"),
        (("latency", "minilm", "--tokens", "0"), "--tokens must be from 1"),
        (("latency", "minilm", "--engines", "fp64"), "not one of fp32"),
        (("latency", "minilm", "--engines", "fp64+spans"), "not one of fp32"),
        (("memory", "minilm", "--engines", "int8+spans"), "not one of fp32"),
        (("latency", "minilm", "--peers", "llama.cpp"), "is no peer"),
        (("latency", "minilm", "--peers", "optimum-0"), "is no peer"),
        (("latency", "minilm", "-o", "x.png"), "x.png is where the chart goes"),
        (("export-memory", "qwen3-0.6b", "-o", "x.md"), "x.md is where the table goes"),
        (("stream", "qwen3-0.6b", "-o", "."), "is a directory"),
        (("stream", "qwen3-0.6b", "--precision", "fp64"), "not one of fp32"),
        (("stream", "qwen3-0.6b", "--peers", "genai-int4-4"), "not one of llm-siren-float32"),
    ],
)
def test_wrong_use_is_refused_before_any_work(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("head", "tokens", "message"),
    [("no-such-head", "8", "neither a shape"), ("bert", "9999", "max_length 48")],
)
def test_a_head_that_cannot_be_measured_is_refused(
    tmp_path, backbone_folder, head, tokens, message
):
    if head == "bert":
        head = make_artifact(tmp_path / "head", backbone_folder("bert"))
    result = run("latency", head, "--tokens", tokens)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("latency", "bench/results/COMMAND-HEAD.json"),
        ("stream", "bench/results/stream-HEAD-PRECISION….json"),
        ("cascade", "with --stream stream-cascade-BUNDLE.json"),
        ("serve", "by itself serve-soak-HEAD.json"),
        ("fidelity-verdicts", "RECORD itself"),
    ],
)
def test_help_says_where_a_record_goes_by_default(command, default):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    assert default in " ".join(shown.replace("│", " ").split())


def test_the_processes_of_a_killed_bench_end_with_it(tmp_path):
    script = tmp_path / "bench.py"
    script.write_text(
        "import os, time\n"
        "from siren_bench.engines.process import in_fresh_process\n"
        "def work():\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    in_fresh_process(work)\n"
    )
    bench = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert bench.stdout is not None
    child = psutil.Process(int(bench.stdout.readline()))
    assert child.is_running()
    bench.kill()
    bench.wait()
    child.wait(timeout=60)


def test_a_fresh_process_does_not_inherit_its_parents_peak():
    ballast = np.ones(300_000_000, dtype=np.uint8)
    assert peak_memory() > ballast.nbytes
    assert in_fresh_process(peak_memory) < 200_000_000
