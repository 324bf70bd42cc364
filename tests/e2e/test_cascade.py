"""Exits: segments are the whole graph cut in parts, and an exit decides only what it may."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch

from backbones import FAMILIES
from calibrated import write_calibration
from exits import BOUNDS, artifact_with_exits, set_bounds
from guards import load_guard
from models import make_artifact, make_labels
from reference import plain_logits
from served import running
from siren_export.export import export_bundle
from siren_export.heads.exits import exit_folder, parse_depths, with_exits
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.reference import LlmSiren
from siren_runtime import AsyncGuard, BundleError, Guard
from siren_runtime.backends.batching import right_pad
from siren_runtime.backends.exits import Exits
from siren_runtime.backends.onnxruntime.cascade import CascadeBackend
from siren_runtime.backends.onnxruntime.session import CPU
from siren_runtime.bundle.manifest import MANIFEST_FILE, decode
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.bundle.thresholds import ResponseThresholds
from siren_runtime.errors import ArtifactError, InputError
from siren_runtime.scoring.engines import Request, open_backend
from siren_runtime.text.rules import clean
from texts import TEXTS
from tiny_bundle import edit_manifest

SAMPLE = [text for text in TEXTS if text and clean(text) == text][:12]


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder):
    """A function: backbone, precision -> the artifact with exits behind 1 and 3 of 4 blocks, and
    its bundle, whose exits have no bounds.
    """
    cases = {}

    def make(name, precision="fp32"):
        key = name, precision
        if key not in cases:
            folder, backbone = tmp_path_factory.mktemp("cascade"), backbone_folder(name)
            artifact = artifact_with_exits(folder / "head", backbone)
            checkpoint, bundle = load_checkpoint(backbone), folder / "bundle"
            export_bundle(artifact, checkpoint, bundle, precision=precision, stream=False)
            cases[key] = artifact, checkpoint, bundle
        return cases[key]

    return make


@pytest.fixture
def deciding(made, tmp_path):
    """A copy of a bundle whose exits decide on about half of the texts each."""

    def copy(name="bert", bounds=BOUNDS):
        bundle = tmp_path / name
        shutil.copytree(made(name)[2], bundle)
        set_bounds(bundle, bounds)
        return bundle

    return copy


def tokens(count=5, seed=0):
    """Right-padded ids and mask of texts of several lengths."""
    rng = np.random.default_rng(seed)
    return right_pad(
        [rng.integers(5, 60, length).tolist() for length in rng.integers(3, 30, count)]
    )


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in FAMILIES), ("bert", "int8"), ("qwen3", "int8"),
     ("mistral-short-window", "int8"), ("modernbert", "int4"), ("gemma2", "fp16")],
)  # fmt: skip
def test_segments_one_after_the_other_are_the_whole_graph_whoever_leaves(made, name, precision):
    bundle = load_bundle(made(name, precision)[2])
    whole, segments = open_backend(bundle, Request("cpu")), CascadeBackend(bundle, CPU)
    ids, mask = tokens()
    expected, found = whole.run(ids, mask), segments.run(ids, mask)
    near = 1e-5 if precision == "fp32" else 0.02  # 8 bits round otherwise where a last bit differs
    np.testing.assert_allclose(found.score, expected.score, rtol=0, atol=near)

    def leave(number, rows, scores):
        assert len(rows) == len(scores)
        return np.isin(rows, [1, 4] if number == 0 else [0])

    rows, rest = segments.run_leaving(ids, mask, leave)
    assert rows.tolist() == [2, 3]
    np.testing.assert_allclose(rest.score, expected.score[[2, 3]], rtol=0, atol=near)


@pytest.mark.parametrize("name", ["bert", "qwen3", "deberta"])
def test_nothing_is_computed_twice_and_no_weight_is_held_twice(made, name):
    bundle = made(name)[2]
    manifest = load_bundle(bundle).manifest

    def products(graph):
        model = onnx.load(bundle / manifest.graphs[graph].file, load_external_data=False)
        weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
        found = [n.input[1] for n in model.graph.node if n.op_type == "MatMul"]
        return [matrix for matrix in found if matrix in weights]

    parts = [matrix for graph in manifest.cascade.graphs for matrix in products(graph)]
    assert sorted(parts) == sorted(products("score"))
    assert len(set(parts)) == len(parts)


def test_an_exit_scores_as_its_artifact_does(made):
    artifact, _, folder = made("bert")
    bundle = load_bundle(folder)
    scorer = load_guard(folder).scorers[0]
    segments = CascadeBackend(bundle, CPU)
    for text in SAMPLE[:5]:
        found = []

        def stay(number, rows, scores, found=found):
            found.append(scores[0])
            return rows < 0

        segments.run_leaving(*right_pad(scorer.tokenizer.encode_batch([text])), stay)
        for score, one in zip(found, artifact.exits.values(), strict=True):
            logits = plain_logits(one.path, artifact.model_id, text)
            assert abs(score - float(torch.softmax(logits, -1)[1])) <= 1e-5


def test_what_an_exit_decides_lies_on_its_side_of_every_cutoff(deciding):
    bundle = deciding()
    exits, whole = load_guard(bundle), load_guard(bundle, exits=False)
    threshold = exits.default_threshold
    results = exits.score_batch(SAMPLE)
    assert {result.exit for result in results} >= {1, 3}
    for text, result in zip(SAMPLE, results, strict=True):
        alone, full = exits.score(text), whole.score(text)
        assert full.exit is None
        assert "exit" not in full.to_dict()
        assert alone.exit == result.exit
        assert alone.score == pytest.approx(result.score, abs=1e-6)
        if result.exit is None:
            assert result.score == pytest.approx(full.score, abs=1e-5)
        else:
            assert json.loads(json.dumps(result.to_dict()))["exit"] == result.exit
            assert result.score <= 0.45 or result.score >= 0.55
            assert result.is_harmful == (result.score >= threshold)


@pytest.mark.parametrize("cutoffs", [[0.5], [0.1, 0.3, 0.9], [0.3000001, 0.7]])
def test_a_decision_is_moved_beyond_all_cutoffs(made, cutoffs):
    cascade = load_bundle(made("bert")[2]).manifest.cascade
    one = msgspec.structs.replace(cascade.exits[0], low=0.6, high=0.65)
    cascade = msgspec.structs.replace(cascade, exits=[one], cutoffs=cutoffs)
    scores = np.array([0.0, 0.05, 0.6, 0.62, 0.65, 1.0, np.nan, np.inf], np.float32)
    decided = Exits(cascade).decide(0, scores)
    assert all(float(score) < cutoffs[0] for score in decided[:3])
    assert np.isnan(decided[[3, 6]]).all()
    assert all(float(score) >= cutoffs[-1] for score in decided[4:6])
    never = msgspec.structs.replace(cascade, cutoffs=[0.0], exits=[one])
    assert np.isnan(Exits(never).decide(0, scores)[:4]).all()  # nothing is below 0


def test_the_whole_guard_decides_where_bounds_do_not_hold(deciding, made):
    bundle = deciding()
    guard, whole = load_guard(bundle), load_guard(bundle, exits=False)
    text = next(t for t in SAMPLE if (one := guard.score(t)).exit and one.tokens > 8)
    for options in ({"threshold": 0.4}, {"features": True}, {"spans": [4]}):
        result = guard.score(text, **options)
        assert result.exit is None
        assert result.score == pytest.approx(whole.score(text).score, abs=1e-5)
    assert guard.score(text, threshold=guard.default_threshold).exit
    pair = load_guard([bundle, made("roberta")[2]])
    assert pair.score(text).exit is None
    other = Guard(guard.scorers, threshold=0.45, limits=replace(guard.judge.limits))
    assert other.score(text).exit is None
    responses = ResponseThresholds(0.45)  # which the bounds were not chosen for
    other = Guard(guard.scorers, responses=responses, limits=replace(guard.judge.limits))
    assert other.score(prompt="a", response=text).exit is None


def test_a_bundle_without_bounds_scores_by_the_whole_guard(made):
    guard = load_guard(made("bert")[2])
    assert not isinstance(guard.scorers[0].backend, CascadeBackend)
    assert all(result.exit is None for result in guard.score_batch(SAMPLE))


def test_callers_that_share_a_guard_get_exits_each_by_his_own_call(deciding):
    bundle = deciding()
    guard = load_guard(bundle)
    expected = guard.score_batch(SAMPLE)

    async def both():
        async with AsyncGuard(load_guard(bundle)) as shared:
            plain = [shared.score(text) for text in SAMPLE]
            strict = [shared.score(text, threshold=0.4) for text in SAMPLE]
            return await asyncio.gather(*plain), await asyncio.gather(*strict)

    plain, strict = asyncio.run(both())
    assert [result.exit for result in plain] == [result.exit for result in expected]
    assert all(result.exit is None for result in strict)


def test_the_server_answers_with_exits_and_counts_them(deciding):
    bundle = deciding()
    expected = Guard.load(bundle, threads=1).score_each(SAMPLE)
    with running({"quick": str(bundle)}) as server:
        answers = server.client.post("/v1/score", json={"inputs": SAMPLE}).json()["results"]
        found = [answer.get("exit") for answer in answers]
        assert found == [getattr(result, "exit", None) for result in expected]
        assert set(found) >= {1, 3}
        for depth in (1, 3):
            line = f'siren_exits_total{{blocks="{depth}",guard="quick"}}'
            assert server.metric(line) == found.count(depth)


def test_a_long_text_says_which_exit_decided_on_the_window_that_counts(deciding):
    guard = Guard.load(deciding(bounds=[(0.999, None)] * 2), max_unknown=1.0)
    result = guard.score(" ".join(SAMPLE) * 3)
    assert result.span is not None
    assert result.exit == 1
    assert not result.is_harmful


def test_streams_of_an_encoder_are_read_by_the_whole_guard(deciding):
    bundle = deciding()
    guard, whole = load_guard(bundle), load_guard(bundle, exits=False)
    with pytest.warns(UserWarning, match="re-encodes"):
        stream = guard.stream()
    with stream:
        result = stream.feed(SAMPLE[0])
    assert result.score == pytest.approx(whole.score(SAMPLE[0]).score, abs=1e-5)


def test_a_guard_that_streams_scores_with_exits_too(made, tmp_path, caplog):
    artifact, checkpoint, _ = made("qwen3")
    export_bundle(artifact, checkpoint, tmp_path / "bundle")
    set_bounds(tmp_path / "bundle", [(0.3, 0.7), (0.2, 0.8)])
    guard = load_guard(tmp_path / "bundle")
    expected = guard.score_batch(SAMPLE)
    assert {result.exit for result in expected} >= {1, 3, None}
    with guard.stream() as stream:
        stream.feed(SAMPLE[0])
    streaming = load_guard(tmp_path / "bundle", streaming=True)
    for one in (guard, streaming):
        for found, result in zip(one.score_batch(SAMPLE), expected, strict=True):
            assert found.exit == result.exit
            assert found.score == pytest.approx(result.score, abs=1e-5)
    assert "exits decide" not in caplog.text

    def without_segments(manifest):
        for name in ["stream.head", "stream.0", "stream.1", "stream.2"]:
            del manifest["graphs"][name]

    edit_manifest(tmp_path / "bundle", without_segments)
    streaming = load_guard(tmp_path / "bundle", streaming=True)
    assert "the whole guard scores every text" in caplog.text
    assert all(result.exit is None for result in streaming.score_batch(SAMPLE))


def test_new_thresholds_drop_the_bounds_that_were_chosen_for_others(deciding):
    bundle = deciding()
    assert write_calibration(bundle, threshold=0.5).cascade.decides  # it is what it was
    manifest = write_calibration(bundle, threshold=0.6)
    assert not manifest.cascade.decides
    assert [one.depth for one in manifest.cascade.exits] == [1, 3]
    assert load_guard(bundle).score(SAMPLE[0]).exit is None


def _exits(manifest):
    return manifest["cascade"]["exits"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(threshold=0.6), "choose them anew with siren calibrate --cascade"),
        (lambda m: m.update(tiers=[{"name": "block", "threshold": 0.9}]), "choose them anew"),
        (lambda m: _exits(m).reverse(), "must ascend in depth"),
        (lambda m: _exits(m)[1].update(depth=4), "must ascend in depth and end before block 4"),
        (lambda m: _exits(m)[0].update(depth=3), "must ascend in depth"),
        (lambda m: _exits(m).clear(), "must ascend in depth"),
        (lambda m: _exits(m)[0].update(low=0.7), "the first must be lower"),
        (lambda m: _exits(m)[0].update(low=1.5), "not a valid manifest"),
        (lambda m: _exits(m)[0]["head"].update(layers=[1]), "layers must ascend"),
        (lambda m: _exits(m)[0]["head"].update(classes=3), "is no head that tells harm"),
        (lambda m: _exits(m)[0].update(extra=1), "unknown field"),
        (lambda m: m["graphs"].pop("cascade.1"), "need a graph 'cascade.1'"),
        (lambda m: m["graphs"]["cascade.0"]["outputs"].pop(), "expected"),
        (lambda m: m["graphs"]["cascade.1"]["inputs"].pop(), "guard.json says"),
        (lambda m: m["graphs"]["cascade.0"]["outputs"][1].update(dtype="float64"), "is float32"),
        (lambda m: m["graphs"]["cascade.0"]["outputs"][1].update(shape=["rows", 4]), "a row for"),
        (lambda m: m["graphs"]["cascade.2"]["outputs"].pop(), "expected"),
    ],
)
def test_exits_that_contradict_the_bundle_are_refused(deciding, change, message):
    bundle = deciding()
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match=message):
        load_guard(bundle).score(SAMPLE[0])


def test_exits_that_do_not_belong_to_the_head_are_refused(made, backbone_folder, tmp_path):
    backbone = backbone_folder("bert")
    head = make_artifact(tmp_path / "head", backbone, layers=[0, 2])
    artifact = load_artifact(head)
    with pytest.raises(ArtifactError, match=r"there is none; make it with siren train --exits 2"):
        with_exits(artifact, [2])
    make_artifact(exit_folder(head, 1), backbone, layers=[1])
    make_artifact(exit_folder(head, 2), backbone, layers=[0, 1], max_length=20)
    make_artifact(exit_folder(head, 3), backbone, layers=[0, 1])
    for depth, message in (
        (1, "reads blocks up to 1; one behind 1 blocks"),
        (2, "max_length of 20"),
        (3, "ends before the head does"),
        (4, "those behind 1, 2, 3"),
    ):
        with pytest.raises(ArtifactError, match=message):
            with_exits(artifact, [depth])
    labels = load_artifact(make_labels(tmp_path / "kinds", backbone, layers=[0, 2]))
    with pytest.raises(ArtifactError, match="heads of two classes"):
        with_exits(labels, [1])
    both = together({"harm": artifact, "other": load_artifact(exit_folder(head, 1))})
    with pytest.raises(ArtifactError, match="exits decide for one head"):
        with_exits(both, [1])
    artifact, checkpoint, _ = made("bert")
    with pytest.raises(InputError, match="exits are for target onnxruntime"):
        export_bundle(artifact, checkpoint, tmp_path / "rtx", target="tensorrt-rtx")


@pytest.mark.parametrize("value", ["", "a", "0,2", "2,2", "-1", "1.5", "2,,4", "99999"])
def test_depths_are_numbers_of_blocks(value):
    with pytest.raises(InputError, match="blocks"):
        parse_depths(value)
    assert parse_depths(" 4, 2") == (2, 4)


def test_verification_covers_segments_and_every_exit(made, tmp_path):
    artifact, checkpoint, _ = made("bert")
    source = LlmSiren(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=source)
    report = manifest.verification
    assert report.status == "passed"
    assert report.exit_texts == report.texts
    assert report.exit_max_difference <= 1e-5
    assert {*report.further} == {"exit.1", "exit.3"}
    assert all(head.max_difference <= 1e-4 for head in report.further.values())
    assert decode((tmp_path / "bundle" / MANIFEST_FILE).read_bytes(), "").verification == report

    wrong = make_artifact(tmp_path / "wrong", Path(artifact.model_id), layers=[0], seed=9)
    exits = {**artifact.exits, 1: load_artifact(wrong)}
    with pytest.raises(BundleError, match=r"scores of the head 'exit\.1' drift"):
        export_bundle(
            replace(artifact, exits=exits), checkpoint, tmp_path / "other", reference=source
        )
