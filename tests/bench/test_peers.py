"""Peers are the real thing, and one that cannot run here is reported with what it needs."""

from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from importlib.util import find_spec

import pytest
from safetensors.numpy import load_file, save_file

from models import make_artifact
from siren_bench.commands import workbench
from siren_bench.commands.workbench import open_workbench
from siren_bench.engines.engine import SirenEdge
from siren_bench.engines.process import load_engines
from siren_bench.peers.missing import PeerMissing
from siren_bench.peers.optimum import optimum_environment
from siren_bench.peers.registry import make_peer, peer_names
from siren_bench.speed.latency import measure_latency
from siren_bench.speed.scaling import Point, measure_points
from siren_bench.speed.throughput import measure_throughput, sweep
from siren_runtime import Guard

TEXT = "The ferry leaves the harbour at seven."


@pytest.fixture(scope="module")
def bench(tmp_path_factory, backbone_folder):
    folder = tmp_path_factory.mktemp("peers")
    head = make_artifact(folder / "guard", backbone_folder("qwen3"))
    with open_workbench(str(head), keep=folder / "kept") as bench:
        yield bench


def _score(engine, text=TEXT):
    return engine.score(engine.load(), text)


def test_generative_guards_of_one_dtype_share_a_model_and_give_no_score(bench):
    names = ("generate-float32-1", "generate-float32-4+20")
    short, long = (make_peer(name, bench, 1) for name in names)
    assert short.model_key == long.model_key
    assert (long.work.new_tokens, long.work.template_tokens) == (4, 20)
    assert long.name == "transformers generate float32, 4 new tokens, template of 20"
    model = short.load()
    assert short.score(model, TEXT) is None
    assert long.score(model, TEXT) is None  # raises if the number of tokens is not exact


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_gives_our_scores(bench):
    expected = Guard.load(bench.bundle("fp32"), threads=1).score(TEXT).score
    peer = make_peer("openvino-float32", bench, 1)
    assert _score(peer) == pytest.approx(expected, abs=1e-4)
    assert peer.score_batch(peer.load(), [TEXT, "a"])[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.skipif(find_spec("nncf") is None, reason="nncf is not installed")
def test_openvino_with_int8_weights_gives_nearly_our_scores(bench):
    expected = Guard.load(bench.bundle("fp32"), threads=1).score(TEXT).score
    assert _score(make_peer("openvino-int8", bench, 1)) == pytest.approx(expected, abs=0.05)


@pytest.mark.skipif(
    not optimum_environment().exists(), reason="siren bench setup-optimum has not been run"
)
def test_optimum_generates_in_its_own_environment(bench):
    peer = make_peer("optimum-4+20", bench, 1)
    worker = peer.load()
    assert peer.score(worker, TEXT) is None
    worker.process.stdin.close()
    assert worker.process.wait(30) == 0
    assert "optimum-onnx" in peer.versions()


def test_without_its_environment_optimum_is_missing_with_what_to_run(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(PeerMissing, match="siren bench setup-optimum"):
        make_peer("optimum-4", bench, 1)


def test_an_encoder_cannot_be_a_generative_guard(tmp_path, backbone_folder):
    head = make_artifact(tmp_path / "head", backbone_folder("bert"))
    with open_workbench(str(head)) as bench:
        engines, missing = bench.engines(["fp32"], ["generate-float32-4"], 1)
    assert [engine.name for engine in engines] == ["siren-edge fp32"]
    assert missing == {"generate-float32-4": "bert is an encoder, which generates nothing"}


def test_a_peer_that_does_not_load_is_reported_and_the_others_run(bench, tmp_path):
    ours = SirenEdge(bench.bundle("fp32"), "fp32", 1)
    broken = SirenEdge(tmp_path / "nothing", "fp16", 1)
    with ExitStack() as stack:
        loaded, failed = load_engines(stack, [ours, broken])
        assert [engine.name for engine, _ in loaded] == ["siren-edge fp32"]
        assert "nothing" in failed["siren-edge fp16"]
        seconds, score = loaded[0][1].score(ours, TEXT)
    assert seconds > 0
    assert 0 <= score <= 1


@pytest.fixture
def ours_and_a_peer(bench):
    """Our engine and another, in processes of their own, and what kills the other's."""
    engines = [SirenEdge(bench.bundle(precision), precision, 1) for precision in ("fp32", "fp16")]
    with ExitStack() as stack:
        loaded, failed = load_engines(stack, engines)
        assert not failed

        def kill():
            (process,) = loaded[1][1]._executor._processes.values()
            process.kill()
            process.join()

        yield loaded, kill


def test_a_peer_that_dies_loses_no_samples_but_its_own(ours_and_a_peer):
    loaded, kill = ours_and_a_peer
    kills = iter([kill])
    results, failed = measure_latency(
        loaded, {1: "a", 2: "a b"}, 2, warm_up=0, progress=lambda *_: next(kills, lambda: None)()
    )
    assert [(entry["tokens"], entry["engine"]) for entry in results] == [
        (1, "siren-edge fp32"),
        (1, "siren-edge fp16"),
        (2, "siren-edge fp32"),
    ]
    assert [len(entry["samples_s"]) for entry in results] == [2, 2, 2]
    assert failed.keys() == {"siren-edge fp16"}
    assert failed["siren-edge fp16"].startswith("at 2 tokens: BrokenProcessPool: ")


def test_a_peer_that_dies_in_the_midst_of_a_corpus_is_left_out(ours_and_a_peer):
    loaded, kill = ours_and_a_peer
    kills = iter([kill])
    cases = sweep(loaded, [1, 2])
    results, failed = measure_throughput(
        cases, ["a", "b", "c"], 3, 2, progress=lambda *_: next(kills, lambda: None)()
    )
    assert [(entry["engine"], entry["batch"]) for entry in results] == [
        ("siren-edge fp32", 1),
        ("siren-edge fp32", 2),
    ]
    assert [len(entry["samples_s"]) for entry in results] == [2, 2]
    assert failed.keys() == {"siren-edge fp16, batch 1", "siren-edge fp16, batch 2"}


def test_a_peer_that_dies_leaves_the_other_points_of_scaling(ours_and_a_peer):
    loaded, kill = ours_and_a_peer
    kill()
    points = [Point("batch", count, ["a"] * count) for count in (1, 2)]
    results, failed = measure_points(loaded, points, 1)
    assert [entry["engine"] for entry in results] == ["siren-edge fp32"] * 2
    assert failed["siren-edge fp16"].startswith("batch 1: ")


def test_progress_tells_the_lengths_that_are_done_and_how_many_there_are(ours_and_a_peer):
    loaded, _ = ours_and_a_peer
    told = []
    measure_latency(
        loaded, {1: "a", 2: "a b"}, 1, warm_up=0, progress=lambda *stage: told.append(stage)
    )
    assert told == [("timing", 1, 2), ("timing", 2, 2)]


def test_the_first_engine_may_not_fail(ours_and_a_peer):
    loaded, kill = ours_and_a_peer
    kill()
    with pytest.raises(BrokenProcessPool):
        measure_latency(loaded[::-1], {1: "a"}, 1, warm_up=0)


def test_a_peer_that_cannot_be_prepared_is_reported_with_its_error(bench, monkeypatch):
    def prepare(name, model, threads):
        raise RuntimeError(f"{name} takes no\nsuch graph")

    monkeypatch.setattr(workbench, "make_peer", prepare)
    engines, missing = bench.engines(["fp32"], ["openvino-int8"], 1)
    assert len(engines) == 1
    assert missing == {"openvino-int8": "RuntimeError: openvino-int8 takes no such graph"}


def test_a_head_that_was_trained_again_finds_nothing_of_the_one_before(tmp_path, backbone_folder):
    folders = []
    for bias in (0.0, 1.0):
        head = make_artifact(tmp_path / "guard", backbone_folder("qwen3"))
        weights = load_file(head / "siren.safetensors")
        last = sorted(name for name in weights if name.endswith("bias"))[-1]
        save_file({**weights, last: weights[last] + bias}, head / "siren.safetensors")
        with open_workbench(str(head), keep=tmp_path / "kept") as opened:
            folders.append(opened.folder)
    assert folders[0] != folders[1]
    assert {folder.name[:6] for folder in folders} == {"guard-"}


def test_peer_names_are_checked():
    names = "llm-siren-bfloat16, generate-bfloat16-128+200,optimum-1"
    assert peer_names(names) == names.replace(" ", "").split(",")
    assert peer_names("") == []
    for wrong in ("generate-float32", "generate-float32-0", "openvino-fp32", "optimum-N[+T]"):
        with pytest.raises(ValueError, match="is no peer"):
            peer_names(wrong)
