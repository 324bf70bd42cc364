"""What runs on bound buffers scores as what does not; on the CPU here, a GPU where there is one."""

import logging
import threading

import msgspec
import numpy as np
import onnxruntime
import pytest

from guards import load_guard
from siren_runtime import Guard
from siren_runtime.backends.onnxruntime.cuda import BoundSession, bound_backend, open_cuda
from siren_runtime.backends.onnxruntime.providers import with_options
from siren_runtime.backends.onnxruntime.session import CPU as ON_CPU
from siren_runtime.backends.onnxruntime.session import SessionRequest, open_session
from siren_runtime.bundle.graphs import score_graph
from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.errors import BackendError
from siren_runtime.scoring.engines import Engines, Request, open_backend
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.reading import LLM_SIREN_LIMITS
from texts import TEXTS
from tiny_bundle import CLASSES, MAX_LENGTH, WIDTH, edit_manifest, make_bundle

OUTPUTS = score_graph({"harm": HeadSpec("mlp", "residual_mean", [0, 1], WIDTH, CLASSES)}).outputs
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(make_bundle(tmp_path / "tiny", scale=2.0))


@pytest.fixture
def session(bundle):
    return open_session(bundle, "score", ON_CPU)[0]


def test_a_guard_on_bound_buffers_scores_as_one_without(bundle, session):
    backend = bound_backend(session, OUTPUTS, "cpu", MAX_LENGTH)
    bound = Guard([Scorer(bundle, Engines(backend))], limits=LLM_SIREN_LIMITS)
    plain = load_guard(bundle.path, backend="cpu")
    for _ in range(2):  # the second time on buffers that hold the first's values
        found = bound.score_batch(TEXTS * 3, features=True)
        expected = plain.score_batch(TEXTS * 3, features=True)
        for one, other in zip(found, expected, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-6)
            np.testing.assert_allclose(one.features, other.features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_an_engine_that_writes_nothing_gives_no_verdict(bundle, session, temperature):
    """The buffers then hold the text's before; the score alone is marked, with NaN."""

    class Dead:
        io_binding = session.io_binding
        alive = True

        def run_with_iobinding(self, *arguments):
            if self.alive:
                session.run_with_iobinding(*arguments)

    calibrated = Bundle(
        bundle.path, msgspec.structs.replace(bundle.manifest, temperature=temperature)
    )
    engine = Dead()
    backend = bound_backend(engine, OUTPUTS, "cpu", MAX_LENGTH)
    guard = Guard([Scorer(calibrated, Engines(backend))])
    guard.score("a text")
    engine.alive = False
    with pytest.raises(BackendError, match="not finite"):
        guard.score("another")


def test_results_do_not_change_when_the_buffers_are_used_again(session):
    bound = BoundSession(session, OUTPUTS, "cpu")
    ids = np.full((2, 3), 5)
    first = bound.run(ids, np.ones_like(ids))
    kept = first.score.copy()
    bound.run(ids + 3, np.ones_like(ids))
    np.testing.assert_array_equal(first.score, kept)


def test_threads_take_turns(bundle, session):
    backend = bound_backend(session, OUTPUTS, "cpu", MAX_LENGTH)
    plain = open_backend(bundle, Request("cpu", threads=1))
    wrong = []

    def use(seed: int) -> None:
        ids = np.random.default_rng(seed).integers(0, 200, (3, 7))
        expected = plain.run(ids, np.ones_like(ids)).score
        found = [backend.run(ids, np.ones_like(ids)).score for _ in range(30)]
        wrong.extend(score for score in found if not np.allclose(score, expected, atol=1e-6))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_failure_names_the_batch(session):
    ids = np.full((1, 4), 10**9)
    with pytest.raises(BackendError, match="1 texts by 4 tokens on cpu"):
        BoundSession(session, OUTPUTS, "cpu").run(ids, np.ones_like(ids))


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has CUDA")
def test_an_onnx_runtime_for_cpus_says_what_to_install_for_cuda(bundle):
    with pytest.raises(BackendError, match=r"pip uninstall onnxruntime.*\.\[cuda\]"):
        load_guard(bundle.path, backend="cuda")


@pytest.mark.skipif(not HAS_CUDA, reason="this ONNX Runtime has no CUDA")
def test_cuda_scores_as_the_cpu_does(bundle):
    expected = [r.score for r in load_guard(bundle.path, backend="cpu").score_batch(TEXTS)]
    with load_guard(bundle.path, backend="cuda") as guard:
        assert guard.backend == "cuda"
        for _ in range(4):  # a shape's CUDA graph is replayed from its third run on
            found = [r.score for r in guard.score_batch(TEXTS)]
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3)


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
TENSORRT = ["TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"]


def test_cuda_multiplies_float32_as_float32(bundle, monkeypatch):
    asked = []
    session = onnxruntime.InferenceSession

    def without_cuda(model, options, providers, **rest):
        asked.append(providers[0])
        if len(asked) == 1:
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("it captures no graph")
        return session(model, options, providers=[CPU], **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    assert open_cuda(bundle, SessionRequest((CUDA, CPU), strict=False)) is None
    exact = {"use_tf32": "0"}
    assert asked == [(CUDA, {**exact, "enable_cuda_graph": "1"}), (CUDA, exact)]
    own = [(CUDA, {"device_id": 1}), CPU]
    for providers, first in ([CUDA, CPU], (CUDA, exact)), (own, own[0]):
        open_session(bundle, "score", SessionRequest(providers, strict=False))
        assert asked[-1] == first


def caches(bundle, graph="score"):
    """The one folder where TensorRT's providers keep what they compile of a graph."""
    options = dict(with_options(bundle, graph, TENSORRT)).values()
    found = [{of[key] for key in of if key.endswith("cache_path")} for of in options]
    (folder,) = set.union(*found)
    assert all(found)
    return folder


def test_tensorrts_providers_keep_their_caches_in_the_bundle(bundle):
    assert [name for name, _ in with_options(bundle, "score", TENSORRT)] == TENSORRT
    (folder,) = (bundle.path / "plans" / "onnxruntime").iterdir()
    assert folder.is_dir()
    assert caches(bundle) == str(folder)


@pytest.mark.parametrize("name", ["weights.bin", "score.onnx"])
def test_what_was_compiled_of_other_weights_or_another_graph_is_not_found(bundle, name):
    before = caches(bundle)
    edit_manifest(bundle.path, lambda m: m["files"][name].update(sha256="0" * 64))
    after = caches(load_bundle(bundle.path))
    assert after != before
    edit_manifest(bundle.path, lambda m: m["files"]["tokenizer.json"].update(sha256="0" * 64))
    assert caches(load_bundle(bundle.path)) == after


def test_options_of_ones_own_stay_and_what_keeps_no_cache_makes_no_folder(bundle):
    own = [(TENSORRT[0], {"device_id": 1}), CPU]
    assert with_options(bundle, "score", own) == own
    assert not (bundle.path / "plans").exists()


def test_without_a_folder_of_its_own_nothing_is_cached_and_a_warning_says_so(
    bundle, tmp_path, caplog
):
    (tmp_path / "elsewhere").mkdir()
    (bundle.path / "plans").symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        assert with_options(bundle, "score", TENSORRT) == TENSORRT
    assert "compiles anew at each start" in caplog.text
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(
    TENSORRT[0] in onnxruntime.get_available_providers(), reason="has the TensorRT provider"
)
def test_a_provider_that_is_missing_is_refused_before_a_folder_is_made(bundle):
    with pytest.raises(BackendError, match=r"no TensorrtExecutionProvider.*\.\[cuda\]"):
        load_guard(bundle.path, providers=[TENSORRT[0]])
    assert not (bundle.path / "plans").exists()
