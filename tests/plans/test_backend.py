"""All of the TensorRT backend but the GPU: which plan, which profile, what padding, which error.

ONNX Runtime stands where the GPU would, so that what is padded and split is really computed.
"""

import logging
import re
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from guards import load_guard
from siren_runtime import Guard
from siren_runtime.backends.base import Outputs
from siren_runtime.backends.padding import PaddedBackend
from siren_runtime.backends.shapes import Extent, Profile
from siren_runtime.backends.tensorrt import engine, gpu
from siren_runtime.backends.tensorrt import score as tensorrt
from siren_runtime.backends.tensorrt.build import build_plan
from siren_runtime.backends.tensorrt.library import Library, load_library
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import BackendError, InputError
from siren_runtime.scoring.engines import Engines, Request, open_backend
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.reading import LLM_SIREN_LIMITS
from texts import TEXTS

PROFILES = [
    Profile(Extent(1, 1), Extent(1, 16), Extent(1, 48)),
    Profile(Extent(2, 4), Extent(4, 16), Extent(6, 48)),
]


def has_gpu() -> bool:
    try:
        gpu.runtime()
    except BackendError:
        return False
    return True


no_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")


class OnnxRunner:
    """Runs what a profile may be given, in ONNX Runtime, and keeps the shapes it was given."""

    def __init__(self, bundle: Bundle, profile: Profile, shapes: list[Extent]) -> None:
        self._backend = open_backend(bundle, Request("cpu", threads=1))
        self._profile, self._shapes = profile, shapes

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> Outputs:
        extent = Extent(*input_ids.shape)
        assert input_ids.dtype == attention_mask.dtype == np.int64
        for low, size, high in zip(self._profile.min, extent, self._profile.max, strict=True):
            assert low <= size <= high
        self._shapes.append(extent)
        outputs = self._backend.run(input_ids, attention_mask)
        assert np.isfinite(outputs.score).all()  # rows of padding too
        return outputs


def backend_over(
    bundle: Bundle, shapes: list[Extent], opened: Callable[[int], object] = lambda profile: None
) -> PaddedBackend:
    def open_runner(profile: int) -> OnnxRunner:
        opened(profile)
        return OnnxRunner(bundle, PROFILES[profile], shapes)

    return PaddedBackend("tensorrt", PROFILES, open_runner)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_to_profiles_and_buckets_changes_no_score(export, name):
    bundle = export(name)
    shapes: list[Extent] = []
    padded = Guard([Scorer(bundle, Engines(backend_over(bundle, shapes)))], limits=LLM_SIREN_LIMITS)
    plain = load_guard(bundle.path, backend="cpu", threads=1)
    expected = [(r.score, r.features) for r in plain.score_batch(TEXTS, features=True)]
    found = [(r.score, r.features) for r in padded.score_batch(TEXTS, features=True)]
    for values, others in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(values, others, rtol=1e-4, atol=1e-5)
    assert padded.score(TEXTS[0]).score == pytest.approx(expected[0][0], abs=1e-5)
    assert len(set(shapes)) <= 20  # few shapes, each of which can be kept as a CUDA graph


def test_a_batch_beyond_the_plans_largest_runs_in_parts(tiny):
    shapes: list[Extent] = []
    ids = np.arange(13 * 5).reshape(13, 5) % 200 + 2
    outputs = backend_over(tiny, shapes).run(ids, np.ones_like(ids))
    expected = open_backend(tiny, Request("cpu")).run(ids, np.ones_like(ids))
    np.testing.assert_allclose(outputs.score, expected.score, atol=1e-6)
    assert outputs.logits.shape == expected.logits.shape
    assert [shape.batch for shape in shapes] == [6, 6, 1]


def test_a_text_longer_than_the_plan_takes_is_an_error(tiny):
    ids = np.ones((1, 49), np.int64)
    with pytest.raises(BackendError, match="49 tokens, the plan takes 48 at most"):
        backend_over(tiny, []).run(ids, ids)


def test_each_thread_has_runners_of_its_own_and_keeps_them(tiny):
    opened: list[tuple[int, int]] = []
    backend = backend_over(tiny, [], lambda p: opened.append((threading.get_ident(), p)))
    ids = np.ones((1, 4), np.int64)

    def use() -> None:
        for rows in (1, 3, 1, 3):
            backend.run(np.repeat(ids, rows, 0), np.repeat(ids, rows, 0))

    use()
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert [profile for _, profile in opened] == [0, 1, 0, 1]
    assert len({ident for ident, _ in opened}) == 2


@pytest.mark.parametrize("buckets", [[8, 8], [16, 8], [0, 8]], ids=str)
def test_buckets_must_ascend(tiny, buckets):
    with pytest.raises(InputError, match="buckets"):
        PaddedBackend("tensorrt", PROFILES, lambda profile: None, buckets)


@no_gpu
def test_without_a_gpu_the_error_says_so_and_what_to_do(tiny, rtx):
    build_plan(tiny, rtx, profiles=[Profile(Extent(1, 1), Extent(1, 8), Extent(2, 32))])
    with pytest.raises(BackendError, match=r"no CUDA GPU.*backend='cpu'|cuda-python"):
        load_guard(tiny.path, backend="tensorrt-rtx")


@no_gpu
def test_auto_passes_over_a_plan_that_cannot_run_and_says_why(tiny, rtx, caplog):
    build_plan(tiny, rtx, profiles=[Profile(Extent(1, 1), Extent(1, 8), Extent(2, 32))])
    with caplog.at_level(logging.WARNING):
        guard = load_guard(tiny.path)
    assert guard.backend == "cpu"
    assert "no plan of" in caplog.text
    assert "no CUDA GPU" in caplog.text or "cuda-python" in caplog.text
    assert "tensorrt cannot be imported" not in caplog.text  # no plan is for it


@pytest.fixture
def full_gpu(monkeypatch) -> None:
    """A GPU of capability 8.9 is there, and the library cannot put a plan on it."""

    def open_full(library: Library, kind: str, logger: Any) -> SimpleNamespace:
        def deserialize(data: bytes) -> None:
            assert data
            logger.errors.append("OutOfMemory (requested 4096 bytes)")

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    monkeypatch.setattr(tensorrt, "compute_capability", lambda: "8.9")
    monkeypatch.setattr(engine, "current_device", lambda: 0)
    monkeypatch.setattr(engine, "use_device", lambda device: None)
    monkeypatch.setattr(engine, "open_interface", open_full)


def test_a_plan_that_does_not_fit_on_the_gpu_is_an_error_and_auto_goes_on(
    tiny, rtx, full_gpu, caplog
):
    build_plan(tiny, rtx, profiles=[Profile(Extent(1, 1), Extent(1, 8), Extent(2, 32))])
    reason = r"cannot load the plan: OutOfMemory .*siren build .*smaller profiles"
    with pytest.raises(BackendError, match=reason):
        load_guard(tiny.path, backend="tensorrt-rtx")
    with caplog.at_level(logging.WARNING), load_guard(tiny.path) as guard:
        assert guard.backend == "cpu"
    assert re.search(reason, caplog.text)


def test_a_context_that_does_not_fit_on_the_gpu_is_an_error(tiny, rtx):
    runner = object.__new__(engine.Runner)
    runner._memory = None
    runner._engine = SimpleNamespace(
        engine=SimpleNamespace(create_execution_context=lambda settings: None),
        errors=lambda: "OutOfMemory",
        library=rtx,
        plan=SimpleNamespace(path=tiny.path / "plans" / "a.plan"),
        settings=object(),
    )
    with pytest.raises(BackendError, match=r"a\.plan: .* no memory .*smaller profiles.*OutOfMem"):
        runner._new_context()


def test_auto_says_nothing_where_there_is_no_plan(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        load_guard(tiny.path)
    assert caplog.text == ""


def test_session_options_belong_to_onnx_runtime(tiny):
    with pytest.raises(InputError, match="session_options"):
        load_guard(tiny.path, backend="tensorrt", session_options=object())


@no_gpu
def test_tensorrt_needs_a_gpu_to_compile_and_says_so(tiny, rtx):
    with pytest.raises(BackendError, match=r"no CUDA GPU|cuda-python"):
        build_plan(tiny, Library("tensorrt", rtx.trt, "10.3.0"))


def test_a_bfloat16_bundle_without_a_plan_says_that_it_needs_one(export):
    bundle = export("qwen3", precision="bf16", target="tensorrt")
    with pytest.raises(BackendError, match=r"bf16 bundle runs on a TensorRT plan.*siren build"):
        load_guard(bundle.path, backend="cpu")


@pytest.mark.skipif(not has_gpu(), reason="needs a GPU and cuda-python")
@pytest.mark.parametrize("name", ["qwen3", "bert"])
@pytest.mark.parametrize("flavor", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_scores_on_the_gpu_as_the_cpu_does(export, flavor, name):
    try:
        library = load_library(flavor)
    except BackendError as error:
        pytest.skip(str(error))
    older = flavor == "tensorrt" and library.version.startswith("10.")
    bundle = export(name, precision="fp16", target="tensorrt10" if older else flavor)
    build_plan(bundle, library)
    expected = [r.score for r in load_guard(bundle.path, backend="cpu").score_batch(TEXTS * 2)]
    found: list[list[float]] = []
    with load_guard(bundle.path, backend=flavor) as guard:
        assert guard.backend == flavor

        def use() -> None:
            for _ in range(4):  # a shape is captured the second time, and replayed from the third
                found.append([result.score for result in guard.score_batch(TEXTS * 2)])
                found.append([guard.score(text).score for text in TEXTS * 2])

        use()
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4 * 2 * 4
    for scores in found:
        np.testing.assert_allclose(scores, expected, rtol=0, atol=5e-3)


@pytest.mark.skipif(not has_gpu(), reason="needs a GPU and cuda-python")
@pytest.mark.parametrize("flavor", ["tensorrt", "tensorrt-rtx"])
def test_streams_over_a_plan_score_on_the_gpu_as_whole_texts_do(export, flavor):
    try:
        library = load_library(flavor)
    except BackendError as error:
        pytest.skip(str(error))
    older = flavor == "tensorrt" and library.version.startswith("10.")
    bundle = export("qwen3", precision="fp16", target="tensorrt10" if older else flavor)
    for graph in ("score", "stream", "head"):
        build_plan(bundle, library, graph)
    text = "Tell me how to bake bread without an oven."
    expected = load_guard(bundle.path, backend="cpu").score(text).score
    with (
        warnings.catch_warnings(),
        load_guard(bundle.path, backend=flavor) as guard,
    ):
        warnings.simplefilter("error")  # of a stream that has no plan
        for aggregation in ("mean", "window"):
            with guard.stream(aggregation=aggregation) as stream:
                found = [stream.feed(character).score for character in text][-1]
            assert found == pytest.approx(expected, abs=5e-3)
