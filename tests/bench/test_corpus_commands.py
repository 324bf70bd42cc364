"""Throughput, memory, cold-start, scaling, fidelity and report, on tiny models."""

import hashlib
import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from models import make_artifact
from siren_bench.cli import app
from siren_bench.records.record import write_record
from siren_bench.reports.report import END, START
from siren_bench.speed.profile import own_time
from siren_export.export import export_bundle
from siren_export.heads.decision_file import write_decision
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import InputError
from siren_runtime.bundle.heads import Decision
from siren_runtime.bundle.thresholds import ResponseThresholds
from texts import TEXTS


@pytest.fixture(scope="module")
def run(tmp_path_factory, backbone_folder):
    """Run a command on one tiny guard, whose bundle is kept, and return its record."""
    folder = tmp_path_factory.mktemp("bench")
    head = make_artifact(folder / "tiny-guard", backbone_folder("qwen3"))
    corpus = folder / "chats.jsonl"
    rows = [{"text": text or " ", "label": i % 2} for i, text in enumerate(TEXTS)]
    corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def run(command, *arguments, peers="", corpora=()):
        output = folder / "results" / f"{command}-tiny-guard.json"
        words = [command, head, *corpora, *arguments]
        words += [] if peers is None else ["--peers", peers]
        words += ["--keep", folder / "kept", "-o", output]
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        assert output.with_suffix(".md").read_text().startswith(result.stdout.rstrip("\n"))
        return json.loads(output.read_text())

    run.folder, run.corpus = folder, corpus
    return run


def bench(*words):
    """Run a command that must end well."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def test_throughput_sweeps_batches_and_token_budgets(run):
    options = ("--texts", 20, "--batches", "2,4", "--token-budgets", "64", "--rounds", 2)
    peers = "llm-siren-float32"
    record = run("throughput", *options, "--threads", 1, peers=peers, corpora=[run.corpus])
    found = [(entry["engine"], entry["batch"]) for entry in record["results"]]
    assert found == [
        ("siren-edge fp32", 2),
        ("siren-edge fp32", 4),
        ("siren-edge fp32, 64 tokens", 4),
        ("llm-siren float32", 1),  # which may be the best for it
        ("llm-siren float32", 2),
        ("llm-siren float32", 4),
    ]
    for entry in record["results"]:
        assert len(entry["samples_s"]) == 2
        assert entry["texts"] == 20
        assert entry["tokens"] == sum(record["settings"]["tokens_of_texts"])
        assert entry["tokens_per_s"] > entry["texts_per_s"] > 0
    assert (run.folder / "results" / "throughput-tiny-guard.png").stat().st_size > 5000
    table = (run.folder / "results" / "throughput-tiny-guard.md").read_text()
    assert re.search(r"\| llm-siren float32 \|.*x, batch [124] \|", table)


def test_cold_start_times_load_and_first_score_in_fresh_processes(run):
    record = run("cold-start", "--rounds", 2, "--tokens", 8)
    (entry,) = record["results"]
    assert len(entry["samples"]) == 2
    assert entry["start_to_score_s"] > entry["load_s"] + entry["first_score_s"] > 0


def test_memory_is_that_of_a_process_with_nothing_but_the_engine(run):
    record = run("memory", "--tokens", "4,16", "--rounds", 2)
    assert [entry["tokens"] for entry in record["results"]] == [4, 16]
    for entry in record["results"]:
        assert 30e6 < entry["resident_bytes"] <= entry["peak_bytes"] < 200e6  # no torch in it
        assert len(entry["resident_samples_bytes"]) == len(entry["peak_samples_bytes"]) == 2


def test_the_profile_shares_the_time_out_to_operators(run):
    record = run("profile", "--tokens", "8,32", "--runs", 2, peers=None)
    assert [entry["tokens"] for entry in record["results"]] == [8, 32]
    for entry in record["results"]:
        assert {"MatMul", "Attention"} & entry["operators_s"].keys()
        assert 0 < sum(entry["operators_s"].values()) < 1


def test_the_time_of_a_choice_is_without_the_operators_chosen(run):
    """int8's attention is in an If, and the profiler has an event for each of them."""
    record = run("profile", "--engines", "int8", "--tokens", "40", "--runs", 2, peers=None)
    operators = record["results"][0]["operators_s"]
    assert {"If", "Attention"} <= operators.keys()
    assert all(seconds >= 0 for seconds in operators.values())

    def node(name, start, duration):
        return {"ts": start, "dur": duration, "args": {"op_name": name}}

    nodes = [node("Attention", 12, 6), node("If", 10, 10), node("Mul", 20, 3), node("Mul", 5, 5)]
    assert own_time(nodes) == {"If": 4, "Attention": 6, "Mul": 8}


def test_scaling_fits_an_exponent_on_every_axis(run):
    options = ("--tokens", "8,32", "--batches", "1,4", "--threads", "1", "--rounds", 1)
    record = run("scaling", *options, peers="generate-float32-1")
    axes = {(entry["axis"], entry["engine"]) for entry in record["results"]}
    assert {("tokens", "siren-edge fp32"), ("batch", "siren-edge fp32")} <= axes
    fits = {(fit["axis"], fit["engine"]): fit for fit in record["settings"]["fits"]}
    assert ("tokens", "siren-edge fp32") in fits
    assert ("batch", "transformers generate float32, 1 new token") not in fits
    table = (run.folder / "results" / "scaling-tiny-guard.md").read_text()
    assert "(of two points)" in table
    assert "r2" not in table


def test_fidelity_compares_precisions_on_labelled_text(run):
    record = run("fidelity", "--engines", "fp32,fp16", corpora=[run.corpus])
    fp32, fp16 = record["results"]
    assert fp32["max_difference"] == 0
    assert 0 < fp16["max_difference"] < 5e-3
    assert fp16["verdict_agreement"] > 0.9
    assert 0 <= fp16["macro_f1"]["chats"] <= 1
    assert len(fp16["scores"]) == len(TEXTS)


@pytest.fixture
def calibrated(run, tmp_path):
    """The same head with thresholds of its own for prompts and for responses."""
    head = shutil.copytree(run.folder / "tiny-guard", tmp_path / "calibrated")
    write_decision(head, Decision(0.25, responses=ResponseThresholds(0.75)))
    return head


def test_verdicts_of_fidelity_are_told_by_the_thresholds_that_the_guard_decides_by(
    run, calibrated, tmp_path
):
    corpus, output = tmp_path / "chats.jsonl", tmp_path / "fidelity.json"
    rows = [{"prompt": text, "label": 1} for text in TEXTS[:6] if text]
    rows += [{**row, "response": "No."} for row in rows]
    corpus.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = [calibrated, corpus, "--engines", "fp32,int4", "-o", output]
    done = bench("fidelity", *words, "--keep", run.folder / "kept")
    record = json.loads(output.read_text())
    assert record["settings"]["thresholds"] == {"prompts": 0.25, "responses": 0.75}
    sha256 = hashlib.sha256((calibrated / "siren.safetensors").read_bytes()).hexdigest()
    assert record["settings"]["weights_sha256"] == {"harm": sha256}
    limits = [0.75 if "response" in row else 0.25 for row in rows]
    fp32, int4 = ([s >= limit for s, limit in zip(e["scores"], limits, strict=True)]
                  for e in record["results"])  # fmt: skip
    agreement = sum(a == b for a, b in zip(fp32, int4, strict=True)) / len(rows)
    assert record["results"][1]["verdict_agreement"] == pytest.approx(agreement)
    assert done.stdout.splitlines()[2].startswith("| siren-edge fp32 ")


def test_a_record_of_fidelity_is_told_anew_from_its_scores(run, calibrated, tmp_path):
    output, again = tmp_path / "fidelity.json", tmp_path / "again.json"
    words = ["--engines", "fp32,int4", "--texts", 12, "--keep", run.folder / "kept"]
    bench("fidelity", run.folder / "tiny-guard", run.corpus, *words, "-o", output)
    first = json.loads(output.read_text())
    old = {name: of for name, of in first["settings"].items() if name != "thresholds"}
    output.write_text(json.dumps({**first, "created": "then", "settings": {**old, "threshold": 1}}))
    bench("fidelity-verdicts", output, calibrated, run.corpus, "-o", again)
    told = json.loads(again.read_text())
    assert told["settings"] == {**old, "thresholds": {"prompts": 0.25, "responses": 0.75}}
    assert (told["created"], told["machine"]) == ("then", first["machine"])
    assert told["retold"].keys() == {"command", "created", "machine", "versions"}
    fp32, int4 = (entry["scores"] for entry in told["results"])
    assert [fp32, int4] == [entry["scores"] for entry in first["results"]]
    agreement = sum((a >= 0.25) == (b >= 0.25) for a, b in zip(fp32, int4, strict=True)) / 12
    assert told["results"][1]["verdict_agreement"] == pytest.approx(agreement)
    assert "Told anew" in again.with_suffix(".md").read_text()


@pytest.mark.parametrize("change", ["rows", "files", "weights", "bench"])
def test_scores_of_other_rows_or_of_another_head_are_not_told_anew(
    run, calibrated, tmp_path, change
):
    scores = [0.5] * (len(TEXTS) - (change == "rows"))
    names = ["other.jsonl" if change == "files" else run.corpus.name]
    settings = {"head": "a head", "split": None, "texts": len(TEXTS), "corpus": names}
    settings["weights_sha256"] = {"harm": "0" * 64} if change == "weights" else {}
    kind = "latency" if change == "bench" else "fidelity"
    path = tmp_path / "record.json"
    write_record(path, kind, settings, [{"engine": "ours", "scores": scores}], "")
    before = path.read_bytes()
    words = [str(word) for word in ("fidelity-verdicts", path, calibrated, run.corpus)]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, InputError)
    assert ("other weights" if change == "weights" else "no scores of these") in str(error)
    assert path.read_bytes() == before


def test_fidelity_compares_bundles_of_the_same_head(run, tmp_path, backbone_folder):
    artifact = load_artifact(run.folder / "tiny-guard")
    checkpoint = load_checkpoint(backbone_folder("qwen3"))
    bundle = tmp_path / "rtx"
    export_bundle(artifact, checkpoint, bundle, precision="int8", target="tensorrt-rtx")
    fp8, rounded = (
        {"precision": "fp8", "target": "tensorrt", "calibration": TEXTS[:8]},
        tmp_path / "fp8",
    )
    export_bundle(artifact, checkpoint, rounded, **fp8)
    options = ("--engines", "fp32", "--bundle", bundle, "--bundle", rounded, "--texts", 12)
    _, *found = run("fidelity", *options, corpora=[run.corpus])["results"]
    assert [one["engine"] for one in found] == [
        "siren-edge int8 for tensorrt-rtx (rtx)",
        "siren-edge fp8 for tensorrt (fp8)",
    ]
    assert 0 < found[0]["max_difference"] < 0.1
    assert 0 < found[1]["mean_difference"] < 0.1

    export_bundle(artifact, checkpoint, tmp_path / "bf16", precision="bf16", target="tensorrt")
    words = ["fidelity", run.folder / "tiny-guard", run.corpus, "--bundle", tmp_path / "bf16"]
    words += ["--engines", "fp32", "--keep", run.folder / "kept", "-o", tmp_path / "out.json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, InputError)
    assert "bf16 does not run" in str(result.exception)

    other = make_artifact(tmp_path / "other", backbone_folder("qwen3"), layers=(0, 1))
    export_bundle(load_artifact(other), checkpoint, tmp_path / "bundle", precision="fp32")
    words = ["fidelity", run.folder / "tiny-guard", run.corpus, "--bundle", tmp_path / "bundle"]
    words += ["--engines", "fp32", "--keep", run.folder / "kept", "-o", tmp_path / "out.json"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, InputError)
    assert "another head" in str(result.exception)
    words = ["fidelity", run.folder / "tiny-guard", run.corpus, "--bundle", bundle]
    words += ["--bundle", bundle, "--engines", "fp32", "--keep", run.folder / "kept"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2
    assert "two have the same" in result.output


def test_each_layer_is_quantized_alone(run):
    options = ("--precision", "int4", "--texts", 12)
    record = run("layers", *options, peers=None, corpora=[run.corpus])
    names = [entry["layer"] for entry in record["results"]]
    assert len(names) == 4 * 4  # inputs of a block's products, blocks
    assert "layers.3/mlp/down_proj" in names
    assert "layers.0/self_attn/q_proj+k_proj+v_proj" in names
    assert all(entry["effect"] > 0 for entry in record["results"])
    harm = [entry["effect"] / entry["elements"] for entry in record["results"]]
    assert harm == sorted(harm, reverse=True)
    assert (run.folder / "results" / "layers-tiny-guard.md").read_text().count("| all ") == 4


def test_an_engine_that_is_too_slow_is_left_out_of_longer_texts(run):
    options = ("--tokens", "8,16", "--rounds", 2, "--no-roofline", "--slowest", 0)
    record = run("latency", "--engines", "fp32,fp16", *options)
    fp32, fp16, longer = record["results"]
    assert (fp32["tokens"], fp16["tokens"], longer["tokens"]) == (8, 8, 16)
    assert longer["engine"] == "siren-edge fp32"
    assert fp16["ratios"].keys() == {"siren-edge fp32", "siren-edge fp16"}
    assert fp16["ratios"]["siren-edge fp16"] == 1.0
    assert fp16["ratios"]["siren-edge fp32"] == fp16["ratio"]


@pytest.fixture(scope="module")
def report(run):
    """Record a latency, and run siren bench report on it, over documents between two marks."""
    run("latency", "--tokens", "8,16", "--rounds", 1, "--no-roofline", peers="llm-siren-float32")
    (run.folder / "docs").mkdir()

    def report(*options, marks=f"{START}\nold\n{END}"):
        documents = [run.folder / "docs" / "benchmarks.md", run.folder / "README.md"]
        for document in documents:
            document.write_text(f"# Guard\n{marks}\nrest\n")
        words = ["report", "tiny-guard", "--results", run.folder / "results", *options]
        words = [str(run.folder / word) if "/" in str(word) else str(word) for word in words]
        return CliRunner().invoke(app, words), *(document.read_text() for document in documents)

    return report


DOCUMENT, README = ("--document", "docs/benchmarks.md"), ("--readme", "./README.md")


def test_the_full_report_names_every_engine_with_its_version(report):
    result, full, readme = report(*DOCUMENT)
    assert result.exit_code == 0, result.output
    assert full.startswith(f"# Guard\n{START}\n")
    assert full.endswith(f"{END}\nrest\n")
    assert "\nold\n" not in full
    assert "siren-edge fp32<br><sub>siren-edge 0." in full
    assert "](../results/latency-tiny-guard.png)" in full
    assert "](../results/latency-tiny-guard.json)" in full
    assert "\nold\n" in readme


def test_the_readme_has_one_small_table(report):
    result, full, readme = report(*README, "--tokens", "8,16")
    assert result.exit_code == 0, result.output
    assert "\nold\n" in full
    _, _, table = readme.partition(START)[2].partition(END)[0].partition("\n\n")
    header, _, *rows = table.strip().splitlines()
    assert header.startswith("| engine | 8 tokens, ms | 16 tokens, ms |")
    assert [row.split(" | ")[0] for row in rows] == ["| siren-edge fp32", "| llm-siren float32"]
    assert "x, 1 sample)" in rows[1]
    assert "tiny-guard" in readme
    assert "png" not in readme


def test_both_documents_are_written_by_one_command(report):
    result, full, readme = report(*DOCUMENT, *README, "--tokens", "8")
    assert result.exit_code == 0, result.output
    assert "\nold\n" not in full + readme


def test_a_report_without_a_document_goes_to_standard_output(report):
    result, full, readme = report()
    assert result.exit_code == 0, result.output
    assert "siren-edge fp32<br><sub>siren-edge 0." in result.stdout
    assert "\nold\n" in full
    assert "\nold\n" in readme


def test_a_length_that_was_not_timed_is_refused_with_those_that_were(report):
    result, _, readme = report(*README, "--tokens", "8,32")
    assert isinstance(result.exception, InputError)
    assert "no text of 32 tokens was timed for tiny-guard, only of 8, 16" in str(result.exception)
    assert "\nold\n" in readme


def test_a_document_without_marks_is_refused(report):
    result, *_ = report(*README, "--tokens", "8", marks="no marks")
    assert isinstance(result.exception, InputError)
    assert "has no" in str(result.exception)


def test_generative_peers_are_refused_where_scores_are_needed(run):
    words = ["fidelity", "minilm", str(run.corpus), "--peers", "generate-float32-4"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "--peers" in result.stderr


def test_throughput_goes_on_without_generative_peers_and_says_so(run):
    options = ("--texts", 4, "--batches", "2", "--token-budgets", "", "--rounds", 1)
    peers = "generate-float32-4,optimum-1"
    record = run("throughput", *options, peers=peers, corpora=[run.corpus])
    assert [entry["engine"] for entry in record["results"]] == ["siren-edge fp32"]
    assert record["settings"]["missing"].keys() == set(peers.split(","))
