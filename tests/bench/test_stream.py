"""siren bench stream on tiny models: what it writes, how it extrapolates, and how it pairs."""

import json
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from typer.testing import CliRunner

from generators import need_genai
from models import make_artifact
from siren_bench.cli import app
from siren_bench.engines.engine import LlmSiren, SirenEdge
from siren_bench.engines.process import in_fresh_process
from siren_bench.peers.genai import Genai
from siren_bench.peers.generation import Generation
from siren_bench.streams.stream import Plan, measure_streams, memory_bandwidth, summarise
from siren_bench.streams.turns import measure_turns, turn_ratios
from siren_bench.subjects.texts import one_token_words
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import BundleError
from siren_runtime.streaming.handles import Stream

QUICK = ["--tokens", "40", "--long-tokens", "64", "--threads", "1", "--walks", "1"]


def stream(*arguments):
    return CliRunner().invoke(app, ["stream", *map(str, arguments)])


def bundle_of(folder, backbone, layers=None):
    artifact = load_artifact(make_artifact(folder / "guard", backbone, layers=layers))
    export_bundle(artifact, load_checkpoint(str(backbone)), folder / "bundle")
    return folder / "bundle"


def test_the_command_measures_records_and_draws(tmp_path, tiny_name):
    output = tmp_path / "stream.json"
    result = stream(tiny_name, *QUICK, "-o", output)
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(output.read_text())["results"]
    assert entry["engine"] == "siren-edge fp32, 3 of 3 blocks"
    assert len(entry["single_s"]) == 40
    assert len(entry["long"]) == 4
    assert entry["max_score_difference"] < 1e-5
    assert all(value > 0 for value in entry["summary"].values())
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "llm-siren float32, every one, s (extrapolated)" in result.stdout


def test_a_generator_and_streams_of_its_backbone_take_turns(tmp_path, backbone_folder):
    need_genai()
    backbone = backbone_folder("llama")
    head = make_artifact(tmp_path / "head", backbone)
    stops_early = bundle_of(tmp_path, backbone, layers=[0, 1])
    output = tmp_path / "stream.json"
    options = ["--precision", "fp16", "--bundle", stops_early, "--peers", "genai-float32"]
    result = stream(head, *options, *QUICK, "-o", output)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    *ours, generator = record["results"]
    assert [entry["engine"] for entry in ours] == [
        "siren-edge fp16, 4 of 4 blocks",
        "siren-edge fp32, 2 of 4 blocks (bundle)",
    ]
    assert generator["engine"] == "onnxruntime-genai float32, 40 new tokens"
    for entry in ours:
        ((turn,),), ((theirs,),) = entry["turns_s"], generator["turns_s"]
        assert entry["to_generators"] == {generator["engine"]: [pytest.approx(turn / theirs)]}
    assert "time over onnxruntime-genai float32" in result.stdout
    assert record["settings"]["missing"] == {}


def test_a_generator_that_is_not_there_is_named_and_streams_are_timed(
    tmp_path, tiny_name, monkeypatch
):
    monkeypatch.setattr("siren_bench.peers.genai.find_spec", lambda name: None)
    output = tmp_path / "stream.json"
    result = stream(tiny_name, *QUICK, "--peers", "genai-int4", "-o", output)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert "not installed" in record["settings"]["missing"]["genai-int4-40"]
    (entry,) = record["results"]
    assert "turns_s" not in entry
    assert "Not measured:" in result.stdout


def test_streams_are_timed_where_llm_siren_fails(tmp_path, backbone_folder):
    bundle = bundle_of(tmp_path, backbone_folder("llama"))
    ours = SirenEdge(bundle, "fp32", 1)
    plan = Plan(threads=1, tokens=32, late=20, sampled=(16,), streams=2, steps=2, long_tokens=32)
    broken = LlmSiren(tmp_path / "no-head", "float32", 1)
    (entry,), failed = measure_streams([ours, broken], {16: "a"}, plan)
    assert len(entry["single_s"]) == 32
    assert "float32_every_token_s" not in entry["summary"]
    assert "no-head" in failed["llm-siren float32"]
    with pytest.raises(BundleError):
        measure_streams([replace(ours, bundle=tmp_path / "no-bundle")], {}, plan)


def test_streams_are_timed_where_a_generator_ends_its_process(
    tmp_path, backbone_folder, monkeypatch
):
    def ends(function, *arguments):
        if function is measure_turns:
            raise BrokenProcessPool("it ended")
        return in_fresh_process(function, *arguments)

    monkeypatch.setattr("siren_bench.streams.stream.in_fresh_process", ends)
    ours = SirenEdge(bundle_of(tmp_path, backbone_folder("llama")), "fp32", 1)
    generator = Genai(tmp_path / "model", "int4", 1, Generation(16, 0, ""))
    plan = Plan(threads=1, tokens=32, late=20, streams=2, steps=2, long_tokens=32)
    (entry,), failed = measure_streams([ours, generator], {}, plan)
    assert "turns_s" not in entry
    assert failed == {generator.name: "BrokenProcessPool: it ended"}


def test_one_stream_is_fed_text_as_llm_siren_is(tmp_path, backbone_folder, monkeypatch):
    fed, feed = [], Stream.feed

    def spy(stream, text):
        fed.append(text)
        return feed(stream, text)

    monkeypatch.setattr(Stream, "feed", spy)
    monkeypatch.setattr(
        "siren_bench.streams.stream.in_fresh_process", lambda function, *given: function(*given)
    )
    bundle = bundle_of(tmp_path, backbone_folder("llama"))
    plan = Plan(threads=1, tokens=32, late=20, streams=2, steps=2, long_tokens=32)
    measure_streams([SirenEdge(bundle, "fp32", 1)], {}, plan)
    words = one_token_words((bundle / "tokenizer.json").read_bytes(), 32)
    halves = ["".join(words[:16]), "".join(words[16:])]
    assert fed == ["".join(words[:4]), *words, *halves]  # to warm up, alone, in chunks


def test_a_token_of_a_stream_is_a_word_of_text(backbone_folder):
    for name in ("llama", "qwen3", "gemma3"):
        tokenizer_json = (backbone_folder(name) / "tokenizer.json").read_bytes()
        tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        words = one_token_words(tokenizer_json, 50)
        lengths = [len(tokenizer.encode("".join(words[:n]).strip()).ids) for n in range(1, 51)]
        assert lengths == list(range(lengths[0], lengths[0] + 50))


def test_a_bundle_of_another_backbone_is_refused(tmp_path, tiny_name, backbone_folder):
    other = bundle_of(tmp_path, backbone_folder("llama"))
    result = stream(tiny_name, *QUICK, "--bundle", other, "--peers", "")
    assert "a bundle of llama of 4 blocks" in str(result.exception)


def test_an_encoder_is_refused(tmp_path, backbone_folder):
    head = make_artifact(tmp_path / "head", backbone_folder("bert"))
    assert "not a decoder" in str(stream(head, *QUICK).exception)


def test_ratios_are_of_turns_at_the_same_positions():
    entries = [{"engine": "ours", "summary": {}}]
    entries += turn_ratios(
        entries, {"ours": [[1.0, 4.0], [3.0, 8.0]], "theirs": [[2.0, 2.0], [2.0, 4.0]]}
    )
    assert entries[0]["to_generators"] == {"theirs": [0.5, 2.0, 1.5, 2.0]}
    assert entries[1] == {"engine": "theirs", "turns_s": [[2.0, 2.0], [2.0, 4.0]]}


def test_totals_of_llm_siren_are_interpolated_between_the_sampled_lengths():
    plan = Plan(tokens=32, chunk=16, early=4, late=28)
    lengths = {1: [1.0], 32: [32.0]}
    results = {
        "single_s": [0.5] * 32,
        "chunk_s": [2.0] * 2,
        "one_step_s": [1.0],
        "batch_step_s": [4.0],
        "bytes_per_stream": 1,
        "weight_bytes": 10,
        "bandwidth_bytes_per_s": 100.0,
        "llm_siren_float32_s": lengths,
        "memory_bytes": {"scoring": 1, "streaming": 1, "switched": 1, "switching_peak": 2},
    }
    summary = summarise(results, plan)
    assert summary["float32_every_token_s"] == pytest.approx(sum(range(1, 33)))
    assert summary["float32_every_token_ratio"] == pytest.approx(sum(range(1, 33)) / 16)
    assert summary["float32_every_chunk_s"] == pytest.approx(16 + 32)
    assert summary["chunked_to_single"] == pytest.approx(0.25)
    assert summary["batch_to_one"] == pytest.approx(8)
    assert summary["floor_reached"] == pytest.approx(0.2)


def test_bandwidth_is_that_of_a_memory():
    assert 1e9 < memory_bandwidth(1) < 1e12
    assert np.isfinite(memory_bandwidth(2))
