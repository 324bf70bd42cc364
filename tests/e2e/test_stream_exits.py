"""Streams with exits: each is the whole guard's stream, or what an exit decided, and says which."""

import asyncio
import json
import shutil
import threading

import numpy as np
import onnx
import pytest

from calibrated import write_calibration
from exits import export_with_exits, set_bounds
from guards import load_guard
from served import running
from siren_command import rows, siren
from siren_runtime import (
    AsyncGuard,
    BackendError,
    BundleError,
    InterruptedCall,
    Patience,
)
from siren_runtime.backends.onnxruntime.stream import OnnxRuntimeStreamBackend
from siren_runtime.bundle.graphs import STREAM_HEAD
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.streaming import cascade as reading
from streaming import BOUND, cut
from texts import CORPUS
from tiny_bundle import edit_manifest

LETTERS = "The quick brown fox jumps over the lazy dog and on it goes. " * 3
NEVER = [(None, None)] * 2
ALWAYS = [(0.999, None), (None, None)]  # behind the first exit


@pytest.fixture(scope="module")
def made(tmp_path_factory, backbone_folder):
    """A function: backbone, precision -> a bundle that streams, whose exits decide."""
    cases = {}

    def make(name, precision="fp32"):
        if (name, precision) not in cases:
            folder, backbone = tmp_path_factory.mktemp("stream-exits"), backbone_folder(name)
            cases[name, precision] = export_with_exits(folder, backbone, precision)
        return cases[name, precision]

    return make


@pytest.fixture
def bounded(made, tmp_path):
    """A function: bounds -> a copy of a bundle with them."""

    def copy(bounds, name="qwen3"):
        shutil.copytree(made(name), tmp_path / "copy", dirs_exist_ok=True)
        set_bounds(tmp_path / "copy", bounds)
        return tmp_path / "copy"

    return copy


@pytest.fixture
def counted(monkeypatch):
    """A function: guard -> how often each segment has run, counted from then on."""

    def count(guard):
        backend = guard.scorers[0].stream_backend
        runs, run = [0] * len(backend.segments), backend.run

        def counting(number, *arrays, **options):
            runs[number] += 1
            return run(number, *arrays, **options)

        monkeypatch.setattr(backend, "run", counting)
        return runs

    return count


def check(result, expected, near):
    """That a result is the whole guard's, or on a side that bounds of an exit are on."""
    assert expected.exit is None
    assert result.tokens == expected.tokens
    assert result.is_harmful == (result.score >= result.threshold)
    if result.exit is None:
        assert result.score == pytest.approx(expected.score, abs=near)
        assert "exit" not in result.to_dict()
    else:
        assert result.exit in (1, 3)
        assert result.score <= 0.45 or result.score >= 0.55
        assert json.loads(json.dumps(result.to_dict()))["exit"] == result.exit


@pytest.mark.parametrize(
    ("name", "precision"),
    [("qwen3", "fp32"), ("llama", "fp32"), ("mistral-short-window", "fp32"), ("gemma3", "fp32"),
     ("gemma2", "fp16"), ("qwen3", "int8"), ("llama", "int4")],
)  # fmt: skip
@pytest.mark.parametrize("most", [5, reading.MOST_WAITING])
def test_a_stream_is_the_whole_guards_or_an_exits_however_it_is_cut(
    made, monkeypatch, name, precision, most
):
    monkeypatch.setattr(reading, "MOST_WAITING", most)
    exits = load_guard(made(name, precision), streaming=True)
    whole = load_guard(made(name, precision), streaming=True, exits=False)
    assert isinstance(whole.scorers[0].stream_backend, OnnxRuntimeStreamBackend)
    rng, seen = np.random.default_rng(7), set()
    near = BOUND if precision == "fp32" else 0.02
    for text in CORPUS[:6]:
        with exits.stream(prompt="Well?") as stream, whole.stream(prompt="Well?") as other:
            for piece in cut(text, rng):
                result, expected = stream.feed(piece), other.feed(piece)
                check(result, expected, near)
                seen.add(result.exit)
            found, scores = ([s.score for s in one.scores] for one in (stream, other))
            np.testing.assert_allclose(found, scores, rtol=0, atol=near)
            check(stream.feed(" And?"), other.feed(" And?"), near)
    assert seen == {1, 3, None}


@pytest.mark.parametrize("name", ["qwen3", "mistral-short-window"])
def test_streams_of_a_batch_leave_each_by_itself(made, name):
    exits = load_guard(made(name), streaming=True)
    whole = load_guard(made(name), streaming=True, exits=False)
    rng, seen = np.random.default_rng(3), set()
    with exits.streams() as streams, whole.streams() as others:
        pairs = []
        for turn in range(30):
            if turn < 8:
                rules = [Patience(1, 2, 0.9)] if turn == 3 else []  # the whole guard decides
                pairs.append((streams.open(rules=rules), others.open(rules=rules)))
            if turn in (12, 20):
                gone = pairs.pop(int(rng.integers(len(pairs) - 1)))
                for stream in gone:
                    stream.close()
            fed = [pair for pair in pairs if rng.random() < 0.7]
            pieces = [str(rng.choice(CORPUS))[: int(rng.choice([1, 2, 9]))] for _ in fed]
            found = streams.feed([(p[0], t) for p, t in zip(fed, pieces, strict=True)])
            expected = others.feed([(p[1], t) for p, t in zip(fed, pieces, strict=True)])
            for pair, result, other in zip(fed, found, expected, strict=True):
                check(result, other, BOUND)
                if pair[0].session._decisions.rules:
                    assert result.exit is None
                    assert result.decisions == other.decisions
                seen.add(result.exit)
    assert seen == {1, 3, None}


def test_what_waits_is_read_once_and_deeper_segments_run_only_where_needed(bounded, counted):
    guard = load_guard(bounded(ALWAYS), streaming=True)
    runs = counted(guard)
    with guard.stream() as stream:
        results = [stream.feed(letter) for letter in LETTERS[:40]]
        shallow = sum(1 for result in results if result.computed)
        assert {result.exit for result in results} == {1}
        assert runs == [shallow, 0, 0]
        held = stream.memory_bytes
        whole = [score.score for score in stream.scores]  # reads on, all that waits at once
        assert runs == [shallow, 1, 1]
        assert stream.memory_bytes < held
        assert [score.score for score in stream.scores] == whole
        assert runs == [shallow, 1, 1]
        assert stream.feed(LETTERS[40:44]).exit == 1
        assert runs[1:] == [1, 1]


def test_no_more_tokens_wait_than_may(bounded, counted, monkeypatch):
    monkeypatch.setattr(reading, "MOST_WAITING", 16)
    guard = load_guard(bounded(ALWAYS), streaming=True)
    runs = counted(guard)
    with guard.stream() as stream:
        for letter in LETTERS[:100]:
            tokens = stream.feed(letter).tokens
            waiting = stream.session.tracks[0].state.waiting
            assert waiting.before(1) < 16
        assert waiting.before(1) + waiting.before(2) + waiting.read[2] == tokens
    assert runs[1] == tokens // 16


def test_where_exits_do_not_decide_the_whole_guard_streams(bounded, made, tmp_path):
    bundle = bounded([(0.999, None)] * 2)
    guard = load_guard(bundle, streaming=True)
    whole = load_guard(bundle, streaming=True, exits=False)
    assert guard.stream().feed(LETTERS[:50]).exit == 1
    assert guard.stream(threshold=guard.default_threshold).feed(LETTERS[:50]).exit == 1
    for options in (
        {"threshold": 0.4},
        {"aggregation": "window", "span": 5},
        {"aggregation": "ema", "span": 5},
        {"prompt": "Well?", "response_only": True},
        {"rules": [Patience(2, 3, 0.6)]},  # exits do not tell on which side of it scores are
        {"rules": [Unknown()]},
    ):
        with guard.stream(**options) as stream, whole.stream(**options) as other:
            for piece in (LETTERS[:30], LETTERS[30:60]):
                result, expected = stream.feed(piece), other.feed(piece)
                assert result.exit is None
                assert result.score == pytest.approx(expected.score, abs=BOUND)
                assert result.decisions == expected.decisions
    pair = load_guard([bundle, made("llama")], streaming=True)
    assert pair.stream().feed(LETTERS[:50]).exit is None
    write_calibration(bundle, threshold=0.6)  # drops the bounds
    assert load_guard(bundle, streaming=True).stream().feed(LETTERS[:50]).exit is None


class Unknown:
    """A rule that does not say what it compares scores with."""

    def start(self):
        return None

    def step(self, state, position, score):
        return None, score > 0.5


def test_a_stream_that_slides_is_read_by_the_whole_guard_from_then_on(bounded):
    bundle = bounded([(0.999, None)] * 2)
    guard = load_guard(bundle, streaming=True)
    whole = load_guard(bundle, streaming=True, exits=False)
    rng = np.random.default_rng(2)
    with guard.stream(max_tokens=24) as stream, whole.stream(max_tokens=24) as other:
        for piece in cut(LETTERS, rng):
            result, expected = stream.feed(piece), other.feed(piece)
            assert (result.exit is None) == result.slid
            assert result.slid == expected.slid
            if result.slid:
                assert result.score == pytest.approx(expected.score, abs=BOUND)
        assert result.slid


def test_whole_texts_and_spans_score_through_the_segments_as_before(made):
    guard = load_guard(made("qwen3"), streaming=True)
    whole = load_guard(made("qwen3"), exits=False)
    for text in CORPUS[:3]:
        found = guard.score(text, features=True, spans=[4])
        expected = whole.score(text, features=True, spans=[4])
        assert found.score == pytest.approx(expected.score, abs=BOUND)
        np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "streaming"), [("qwen3", True), ("qwen3", False), ("bert", False)]
)
def test_texts_too_short_for_spans_leave_and_others_have_theirs(
    bounded, name, streaming, monkeypatch
):
    # Of an encoder's spans the guard without exits reads the promising ones alone.
    monkeypatch.setattr("siren_runtime.scoring.windows.promising", lambda cuts, *_: cuts)
    bundle = bounded(ALWAYS, name)
    guard, whole = load_guard(bundle, streaming=streaming), load_guard(bundle, exits=False)
    texts = [LETTERS, "A", *CORPUS[:3], "fox", LETTERS[:40], "dog"]
    results = guard.score_batch(texts, spans=[8])
    expected = whole.score_batch(texts, spans=[8])
    assert {bool(one.spans) for one in expected} == {False, True}
    for text, one, other in zip(texts, results, expected, strict=True):
        assert one.exit == (None if other.spans else 1), text
        assert not one.is_harmful if one.exit else one.is_harmful == other.is_harmful
        assert [span.score for span in one.spans] == pytest.approx(
            [span.score for span in other.spans], abs=BOUND
        )


def test_a_stream_that_fails_at_a_deeper_segment_leaves_the_others_right(bounded, monkeypatch):
    bundle = bounded([(0.02, 0.98)] * 2)
    guard = load_guard(bundle, streaming=True)
    whole = load_guard(bundle, streaming=True, exits=False)
    backend = guard.scorers[0].stream_backend
    run = backend.run

    def failing(number, input_ids, *arrays, **options):
        if number == 2 and input_ids.shape[1] > 5:
            raise BackendError("out of order")
        return run(number, input_ids, *arrays, **options)

    monkeypatch.setattr(backend, "run", failing)
    with guard.streams() as streams:
        good, bad = streams.open(), streams.open()
        found = streams.feed([(good, "ab"), (bad, LETTERS[:60])])
        assert isinstance(found[1], BackendError)
        with whole.stream() as other:
            check(found[0], other.feed("ab"), BOUND)
        with pytest.raises(BackendError, match="reset it"):
            bad.feed("x")
        bad.reset()
        monkeypatch.undo()
        with whole.stream() as other:
            check(bad.feed(LETTERS[:60]), other.feed(LETTERS[:60]), BOUND)


def test_a_call_may_end_between_two_segments(bounded, monkeypatch):
    guard = load_guard(bounded([(0.0001, 0.9999)] * 2), streaming=True)
    backend, gone = guard.scorers[0].stream_backend, threading.Event()
    run, ran = backend.run, []

    def ending(number, *arrays, **options):
        ran.append(number)
        gone.set()
        return run(number, *arrays, **options)

    monkeypatch.setattr(backend, "run", ending)
    with guard.stream() as stream, pytest.raises(InterruptedCall):
        stream.feed("The quick", cancel=gone)
    assert ran == [0]


def test_every_weight_is_there_once_and_no_product_twice(made):
    folder = made("qwen3")
    manifest = load_bundle(folder).manifest

    def products(graph):
        model = onnx.load(folder / manifest.graphs[graph].file, load_external_data=False)
        weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
        found = [n.input[1] for n in model.graph.node if n.op_type == "MatMul"]
        return [matrix for matrix in found if matrix in weights]

    parts = [matrix for graph in manifest.cascade.stream_graphs for matrix in products(graph)]
    assert sorted(parts) == sorted(products("stream"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_segments_of_streams_add_no_weights(made, precision):
    folder = made("qwen3", precision)
    manifest = load_bundle(folder).manifest

    def weights(names):
        models = [
            onnx.load(folder / manifest.graphs[name].file, load_external_data=False)
            for name in names
        ]
        return {t.name for m in models for t in m.graph.initializer if t.external_data}

    cascade = manifest.cascade
    segments = weights([*cascade.stream_graphs, STREAM_HEAD])
    assert segments <= weights(["score", "stream", *cascade.graphs])


def test_a_bundle_of_before_streams_by_the_whole_guard(bounded):
    bundle = bounded([(0.999, None)] * 2)
    with load_guard(bundle, streaming=True).stream() as stream:
        assert stream.feed(LETTERS[:50]).exit == 1

    def without_segments(manifest):
        for name in [STREAM_HEAD, "stream.0", "stream.1", "stream.2"]:
            del manifest["graphs"][name]

    edit_manifest(bundle, without_segments)
    guard = load_guard(bundle, streaming=True)
    whole = load_guard(bundle, streaming=True, exits=False)
    with guard.stream() as stream, whole.stream() as other:
        result = stream.feed(LETTERS[:50])
        assert result.exit is None
        assert result.score == other.feed(LETTERS[:50]).score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop("stream.1"), "need a graph 'stream.1'"),
        (lambda g: g.pop(STREAM_HEAD), "need a graph 'stream.head'"),
        (lambda g: g["stream.0"]["outputs"].pop(), "expected"),
        (lambda g: g["stream.0"]["outputs"].pop(0), "expected"),
        (lambda g: g["stream.1"]["inputs"].pop(0), "expected"),
        (lambda g: g["stream.1"]["outputs"][1].update(shape=[]), "expected"),
        (lambda g: g["stream.0"]["outputs"][-1].update(dtype="float16"), "is float32"),
        (lambda g: g["stream.0"]["outputs"][-1].update(shape=["batch", 4]), "a row for"),
        (lambda g: g[STREAM_HEAD]["inputs"][0].update(shape=["batch", 4]), "expected"),
    ],
)
def test_segments_that_contradict_the_bundle_are_refused(bounded, change, message):
    bundle = bounded(NEVER)
    edit_manifest(bundle, lambda manifest: change(manifest["graphs"]))
    with pytest.raises(BundleError, match=message):
        load_guard(bundle)


def test_the_command_streams_with_exits_and_without(bounded):
    bundle = bounded(ALWAYS)
    for option, depth in (("--exits", 1), ("--no-exits", None)):
        ran = siren("stream", bundle, "--threads", 1, option, input=LETTERS[:50])
        assert rows(ran)[-1].get("exit") == depth


def test_streams_that_are_shared_and_served_leave_too(bounded):
    bundle = bounded(ALWAYS)

    async def shared():
        async with AsyncGuard(load_guard(bundle)) as guard, guard.stream() as stream:
            return await stream.feed(LETTERS[:50])

    assert asyncio.run(shared()).exit == 1
    with running({"quick": str(bundle)}) as server:
        opened = server.client.post("/v1/streams", json={}).json()
        answer = server.client.post(f"/v1/streams/{opened['id']}", json={"text": LETTERS[:50]})
        assert answer.json()["exit"] == 1
        server.client.delete(f"/v1/streams/{opened['id']}")  # at the end of which it is counted
        assert server.metric('siren_exits_total{blocks="1",guard="quick"}') == 1
