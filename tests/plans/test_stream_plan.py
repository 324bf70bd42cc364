"""Streams over a plan: compiled, padded and exact, with ONNX Runtime where the GPU would be."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from siren_runtime import Guard, SharedGuard, Sharing
from siren_runtime.backends.onnxruntime.session import CPU, open_session
from siren_runtime.backends.shapes import (
    LEAST_STREAM_TOKENS,
    Choice,
    Extent,
    Profile,
    check_stream_profiles,
    choose_stream_profile,
    default_head_profiles,
    default_stream_profiles,
    parse_profile,
)
from siren_runtime.backends.tensorrt import engine
from siren_runtime.backends.tensorrt import score as tensorrt
from siren_runtime.backends.tensorrt import stream as tensorrt_stream
from siren_runtime.backends.tensorrt.build import build_plan
from siren_runtime.backends.tensorrt.engine import Engine, fill
from siren_runtime.backends.tensorrt.library import Library, make_logger, open_interface
from siren_runtime.backends.tensorrt.plan import Plan, find_plan, recorded_plans
from siren_runtime.backends.tensorrt.stream import PlanStreamBackend, Profiles
from siren_runtime.bundle.graphs import TensorSpec
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.commands.build import app
from siren_runtime.commands.inspect import app as inspect_app
from siren_runtime.errors import BackendError, InputError
from siren_runtime.scoring.engines import (
    Engines,
    Request,
    open_backend,
    open_stream_backend,
)
from siren_runtime.scoring.scorer import Scorer
from texts import TEXTS

STREAMS = [
    Profile(Extent(1, 1, 1), Extent(1, 1, 16), Extent(1, 16, 96)),
    Profile(Extent(1, 1, 1), Extent(2, 1, 16), Extent(2, 16, 96)),
]
HEAD = [Profile(Extent(1, 1), Extent(1, 1), Extent(8, 1))]


class OnnxRunner:
    """Runs what a profile may be given, in ONNX Runtime, from buffers that held NaN before."""

    def __init__(self, bundle: Bundle, graph: str, profile: Profile, seen: list[Extent]) -> None:
        self._graph = bundle.manifest.graphs[graph]
        self._session, _ = open_session(bundle, graph, replace(CPU, threads=1))
        self._profile, self._seen = profile, seen

    def run(
        self, inputs: Mapping[str, np.ndarray], extent: Extent, wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        for low, size, high in zip(self._profile.min, extent, self._profile.max, strict=True):
            assert low <= size <= high
        self._seen.append(extent)
        feed = {}
        for spec in self._graph.inputs:
            whole = np.dtype(spec.dtype).kind == "f"
            start = np.nan if whole else -1
            feed[spec.name] = np.full(extent.shape(spec.shape), start, spec.dtype)
            assert inputs[spec.name].dtype == spec.dtype
            fill(feed[spec.name], inputs[spec.name])
        found = dict(zip(wanted, self._session.run(list(wanted), feed), strict=True))
        for spec in self._graph.outputs:
            if spec.name in found:
                assert found[spec.name].shape == extent.shape(spec.shape)
        return found


def stream_backend(
    bundle: Bundle, seen: list[Extent], streams: list[Profile] = STREAMS
) -> PlanStreamBackend:
    def profiles(graph: str, shapes: list[Profile]) -> Profiles:
        return Profiles(shapes, lambda number: OnnxRunner(bundle, graph, shapes[number], seen))

    manifest = bundle.manifest
    return PlanStreamBackend(
        "tensorrt",
        manifest.heads,
        manifest.pooled,
        manifest.stream_cache,
        profiles("stream", streams),
        profiles("head", HEAD),
    )


class Compiled:
    """A backend of whole texts that calls itself a plan."""

    name = "tensorrt"

    def __init__(self, bundle: Bundle) -> None:
        backend = open_backend(bundle, Request("cpu", threads=1))
        self.run, self.token_budget = backend.run, backend.token_budget


def guard_on_plans(bundle: Bundle, open_stream: Any) -> Guard:
    return Guard([Scorer(bundle, Engines(Compiled(bundle), open_stream))])


def fed(guard: Guard, texts: Sequence[str]) -> list[float]:
    """Feed each text in three pieces to a stream of its own; all streams are read together."""
    with guard.streams(max_tokens=64) as streams:
        opened = [streams.open() for _ in texts]
        for part in range(3):
            pieces = [text[len(text) * part // 3 : len(text) * (part + 1) // 3] for text in texts]
            results = streams.feed(zip(opened, pieces, strict=True))
    return [result.score for result in results]


@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral-short-window", "gemma3"])
def test_streams_over_a_plan_score_as_those_of_onnx_runtime_do(export, name):
    bundle = export(name)
    seen: list[Extent] = []
    guard = guard_on_plans(bundle, lambda: stream_backend(bundle, seen))
    texts = [text for text in TEXTS if len(text) > 4][:5]
    found = fed(guard, texts)
    assert guard.backend == "tensorrt"
    expected = fed(Guard.load(bundle.path, backend="cpu", threads=1), texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert {extent.batch for extent in seen} == {1, 2}  # five streams, in parts of two
    assert {extent.past for extent in seen} <= {16, 24, 32, 48, 64, 96}


@pytest.mark.parametrize("aggregation", ["mean", "window"])
def test_a_step_and_the_head_give_what_onnx_runtime_gives(export, aggregation):
    bundle = export("qwen3")
    text = " ".join(TEXTS[:3])
    scores = []
    for open_stream in (
        lambda: stream_backend(bundle, []),
        lambda: open_stream_backend(bundle, Request("cpu", threads=1)),
    ):
        with guard_on_plans(bundle, open_stream).stream(
            aggregation=aggregation, max_tokens=64
        ) as stream:
            scores.append([stream.feed(piece).score for piece in text.split(" ")])
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_streams_beyond_a_ring_score_as_those_of_onnx_runtime_do(export):
    bundle = export("gemma3")
    ids = [5 + i * i % 300 for i in range(90)]
    scores = []
    for open_stream in (
        lambda: stream_backend(bundle, []),
        lambda: open_stream_backend(bundle, Request("cpu", threads=1)),
    ):
        with guard_on_plans(bundle, open_stream).stream(max_tokens=96) as stream:
            for start in range(0, 90, 9):
                stream.feed_tokens(ids[start : start + 9])
            scores.append([score.score for score in stream.scores])
    assert len(scores[0]) == 90
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_stream_holds_what_the_plan_takes_and_slides_beyond(export):
    bundle = export("qwen3")
    guard = guard_on_plans(bundle, lambda: stream_backend(bundle, []))
    with pytest.raises(InputError, match=r"max_tokens must be .* 96"):
        guard.stream(max_tokens=97)
    with guard.stream() as stream:
        result = stream.feed_tokens([5 + i % 50 for i in range(150)])
    assert result.slid
    with SharedGuard(guard, Sharing(max_stream_tokens=97)) as shared:
        assert shared.dispatcher.with_streams(lambda streams: streams.max_tokens).result() == 96


@pytest.fixture
def on_onnx_runtime(monkeypatch) -> None:
    """Plans are chosen as they are on a GPU of capability 8.9; ONNX Runtime runs their profiles."""

    class Loaded:
        def __init__(self, plan: Plan, library: Library, graph: Any) -> None:
            self.plan, self.bundle = plan, load_bundle(plan.path.parent.parent)

    class ScoreRunner:
        def __init__(self, engine: Loaded, profile: int) -> None:
            self.run = open_backend(engine.bundle, Request("cpu", threads=1)).run

    def runner(engine: Loaded, profile: int) -> OnnxRunner:
        record = engine.plan.record
        return OnnxRunner(engine.bundle, record.graph, record.profiles[profile], [])

    for module in (tensorrt, tensorrt_stream):
        monkeypatch.setattr(module, "compute_capability", lambda: "8.9")
    for name, stand_in in (("Engine", Loaded), ("ScoreRunner", ScoreRunner), ("Runner", runner)):
        monkeypatch.setattr(engine, name, stand_in)


def test_auto_streams_on_plans_if_all_match_and_else_says_why_it_does_not(
    export, rtx, on_onnx_runtime, caplog
):
    bundle = export("qwen3", precision="fp16", target="tensorrt-rtx")
    score = [Profile(Extent(1, 1), Extent(1, 8), Extent(1, 48))]
    for graph, shapes in (("score", score), ("stream", STREAMS), ("head", HEAD)):
        build_plan(bundle, rtx, graph, profiles=shapes)
    text = "how are you today?"
    with Guard.load(bundle.path, streaming=True) as guard:
        assert guard.backend == "tensorrt-rtx"
        whole = guard.score(text).score
        with guard.stream() as stream:
            results = [stream.feed(piece) for piece in ("how ", "are you", " today?")]
        assert results[-1].score == pytest.approx(whole, abs=5e-3)
        assert results[-1].computed < len(text)  # none of it was read anew
    assert "no plan of" not in caplog.text
    for path in (bundle.path / "plans").glob("head-*.json"):
        path.unlink()
    with caplog.at_level(logging.WARNING), Guard.load(bundle.path, streaming=True) as guard:
        assert guard.backend == "cpu"
        assert guard.score(text).score == pytest.approx(whole, abs=5e-3)
        guard.stream().feed(text)  # of its streaming graph, so nothing warns
    assert re.search(r"no plan of .* plan of the head graph .* run siren build", caplog.text)
    with Guard.load(bundle.path) as guard:  # asked for no streams
        assert guard.backend == "tensorrt-rtx"


def test_without_a_plan_of_its_own_a_stream_reads_its_text_anew_and_says_why(export):
    bundle = export("qwen3")

    def missing() -> PlanStreamBackend:
        raise BackendError("no tensorrt plan of the stream graph fits here; run siren build")

    guard = guard_on_plans(bundle, missing)
    with pytest.warns(UserWarning, match=r"no plan: .* run siren build, so each feed .*re-encodes"):
        stream = guard.stream()
    assert stream.feed("how are you").score == pytest.approx(guard.score("how are you").score)


@pytest.mark.parametrize(
    ("name", "precision", "target"),
    [
        ("qwen3", "fp16", "tensorrt-rtx"),
        ("qwen3", "int4", "tensorrt-rtx"),
        ("qwen3", "int8", "tensorrt"),
        ("qwen3", "fp32", "tensorrt10"),
        ("gemma3", "fp16", "tensorrt-rtx"),
        ("gemma2", "fp32", "tensorrt10"),
        ("phi3-partial-window", "fp32", "tensorrt10"),
    ],
)
def test_every_precision_streams_and_compiles_with_the_tensors_of_its_graph(
    export, rtx, name, precision, target
):
    bundle = export(name, precision=precision, target=target, calibration=TEXTS[:8])
    with Guard.load(bundle.path, backend="cpu", threads=1) as guard:
        with guard.stream() as stream:
            result = [stream.feed(piece) for piece in ("how ", "are you", " today?")][-1]
        whole = open_backend(bundle, Request("cpu", threads=1))
        plain = Guard([Scorer(bundle, Engines(whole))])
        assert result.score == pytest.approx(plain.score("how are you today?").score, abs=0.02)
    for graph, shapes in (("stream", STREAMS[1:]), ("head", HEAD)):
        plan = build_plan(bundle, rtx, graph, profiles=shapes)
        assert plan.record.graph == graph
        assert find_plan(bundle, graph, rtx, None).record.profiles == shapes
    with pytest.raises(BackendError, match="score graph"):
        find_plan(bundle, "score", rtx, None)


def test_the_command_compiles_every_graph_and_inspect_shows_them(export, rtx):
    bundle = export("qwen3", precision="fp16", target="tensorrt-rtx")
    options = [str(bundle.path), "--flavor", "tensorrt-rtx", "--profile", "1x1:1x8:2x16"]
    result = CliRunner().invoke(app, [*options, "--stream-profile", "1x1x1:1x1x16:2x8x32"])
    assert result.exit_code == 0, result.output
    assert "1x1x1:1x1x16:2x8x32" in result.stderr
    graphs = {record.graph: path for path, record in recorded_plans(bundle).items()}
    assert set(graphs) == {"score", "stream", "head"}
    shown = CliRunner().invoke(inspect_app, [str(bundle.path)], env={"COLUMNS": "400"}).stdout
    for path in graphs.values():
        (line,) = [line for line in shown.splitlines() if path.name in line]
        assert line.rstrip().endswith("matches the bundle")
    graphs["stream"].write_bytes(b"cut")
    with pytest.raises(BackendError, match="truncated"):
        find_plan(bundle, "stream", rtx, None).read()


def test_a_graph_that_the_bundle_lacks_is_refused(tiny, rtx):
    with pytest.raises(InputError, match=r"no stream graph, only score"):
        build_plan(tiny, rtx, "stream")


def test_an_extent_gives_a_tensors_shape_by_the_names_of_its_dimensions():
    extent = Extent(2, 8, 64)
    assert extent.shape(["batch", 4, "past", 16]) == (2, 4, 64, 16)
    assert extent.shape(["batch", "chunk"]) == extent.shape(["batch", "sequence"]) == (2, 8)
    assert str(extent) == "2x8x64"
    assert str(Extent(2, 8)) == "2x8"


def test_the_defaults_take_one_stream_and_eight_within_the_backbones_context():
    one, many = default_stream_profiles(512, 40960)
    assert (one.max, many.max) == (Extent(1, 256, 2048), Extent(8, 256, 2048))
    assert default_stream_profiles(512, 512)[0].max == Extent(1, 256, 512)
    assert default_head_profiles()[0].max.batch == 256


def test_one_token_of_one_stream_stays_one_token():
    profiles = default_stream_profiles(512, 40960)
    assert choose_stream_profile(profiles, Extent(1, 1, 65)) == Choice(0, Extent(1, 1, 96))
    assert choose_stream_profile(profiles, Extent(3, 5, 2048)) == Choice(1, Extent(4, 8, 2048))
    with pytest.raises(BackendError, match=r"9 streams by 1 tokens after 10.*--stream-profile"):
        choose_stream_profile(profiles, Extent(9, 1, 10))


@pytest.mark.parametrize("text", ["1x1:1x1:1x1", "1x1x1:1x1x1:1x1x41", "1x0x1:1x1x1:1x1x8"])
def test_a_stream_profile_must_ascend_within_the_context(text):
    with pytest.raises(InputError, match=r"must ascend from 1|the 40 that the backbone can hold"):
        check_stream_profiles([parse_profile(text)], 40)


def test_stream_profiles_must_hold_the_fewest_tokens_of_a_stream(export, rtx):
    short, long = (parse_profile(f"1x1x1:1x1x4:1x8x{past}") for past in (7, 8))
    check_stream_profiles([short, long], 40)  # one that does is enough
    bundle = export("qwen3", precision="fp16", target="tensorrt-rtx")
    with pytest.raises(InputError, match=r"1x8x7: a past of 7 tokens .* stream holds 8 at least"):
        build_plan(bundle, rtx, "stream", profiles=[short])
    assert not list((bundle.path / "plans").glob("*.plan"))


def test_a_stream_in_the_least_plan_slides(export):
    bundle = export("qwen3")
    least = [Profile(Extent(1, 1, 1), Extent(1, 1, 4), Extent(1, 4, LEAST_STREAM_TOKENS))]
    guard = guard_on_plans(bundle, lambda: stream_backend(bundle, [], least))
    with guard.stream() as stream:
        result = stream.feed_tokens([5 + i % 50 for i in range(30)])
    assert result.slid
    assert 0 <= result.score <= 1


class Network:
    """What an engine says of its tensors, from the network that the parser made of the graph."""

    def __init__(self, network: Any) -> None:
        inputs = (network.get_input(i) for i in range(network.num_inputs))
        outputs = (network.get_output(i) for i in range(network.num_outputs))
        self._tensors = {tensor.name: tensor for tensor in (*inputs, *outputs)}
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> Any:
        return self._tensors[name].shape


@pytest.mark.parametrize("graph", ["score", "stream", "head"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_engine_takes_a_plan_of_its_graphs_tensors_and_no_other(export, rtx, precision, graph):
    bundle = export("qwen3", precision=precision, target="tensorrt-rtx")
    logger = make_logger(rtx, "error", print)
    builder = open_interface(rtx, "Builder", logger)
    network = builder.create_network(rtx.network_flags())
    spec = bundle.manifest.graphs[graph]
    assert rtx.trt.OnnxParser(network, logger).parse_from_file(str(bundle.file(spec.file)))
    engine = object.__new__(Engine)
    engine.library, engine.engine = rtx, Network(network)
    engine.plan = Plan(bundle.path / "a.plan", None)
    engine.inputs, engine.outputs = spec.inputs, spec.outputs
    engine._check_tensors()
    engine.outputs = spec.outputs[:-1]
    with pytest.raises(BackendError, match=r"a\.plan: the plan has tensors .*siren build again"):
        engine._check_tensors()
    name = spec.outputs[-1].name
    engine.outputs = [*spec.outputs[:-1], TensorSpec(name, spec.outputs[-1].dtype, ["batch"] * 7)]
    with pytest.raises(
        BackendError, match=rf"the plan's {re.escape(name)} has shape .*siren build"
    ):
        engine._check_tensors()
