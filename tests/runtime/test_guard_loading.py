"""What a guard is loaded from and with."""

import gc
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from siren_runtime import BackendError, BundleError, Guard, InputError
from siren_runtime.bundle import shipped


def test_a_bundle_can_be_moved(bundle: Path, own_bundle: Path, tmp_path: Path) -> None:
    moved = own_bundle.rename(tmp_path / "über den Fluß 🙂")
    assert Guard.load(moved).score("hello") == Guard.load(str(bundle)).score("hello")


def test_a_bundle_is_found_through_a_link_to_its_folder(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    Guard.load(tmp_path / "link", verify="full").score("hello")


def test_a_closed_guard_refuses_to_score(bundle: Path) -> None:
    with Guard.load(bundle) as guard:
        guard.score("hello")
    with pytest.raises(BackendError, match="closed"):
        guard.score("hello")
    guard.close()


def test_session_options_are_the_callers(bundle: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    Guard.load(bundle, session_options=options)
    assert (tmp_path / "optimized.onnx").exists()


def test_providers_are_the_callers(bundle: Path) -> None:
    guard = Guard.load(bundle, providers=[("CPUExecutionProvider", {})])
    assert guard.backend == "cpu"


@pytest.mark.parametrize(
    "arguments",
    [
        {"backend": "gpu"},
        {"verify": "none"},
        {"threads": 0},
        {"threads": 1.5},
        {"threads": 10**12},
        {"threads": True},
        {"threads": 1, "session_options": onnxruntime.SessionOptions()},
        {"backend": "cpu", "providers": ["CPUExecutionProvider"]},
        {"providers": []},
        {"providers": "CPUExecutionProvider"},
        {"providers": [3]},
        {"buckets": [5, 3, -1]},
        {"buckets": [16, 8]},
        {"buckets": [1.5]},
        {"buckets": "x"},
        {"buckets": 8},
    ],
)
def test_arguments_that_make_no_sense_are_refused(bundle: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        Guard.load(bundle, **arguments)


def test_threads_beyond_the_cores_of_the_process_are_not_taken(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = threading.active_count()
    guard = Guard.load(bundle, threads=1024)
    assert guard.score("hello").score == pytest.approx(Guard.load(bundle).score("hello").score)
    assert threading.active_count() == started
    tasks = len([*Path("/proc/self/task").iterdir()]) if Path("/proc/self/task").is_dir() else 0
    assert tasks < 512
    (record,) = caplog.records
    assert record.getMessage().startswith("threads=1024, but this process has ")
    caplog.clear()
    Guard.load(bundle, threads=1)
    assert not caplog.records


class _Alarm(Exception):
    """What a handler of the caller raises."""


@pytest.mark.parametrize("kind", [_Alarm, TimeoutError, RuntimeError, ValueError, Exception])
def test_what_a_handler_of_a_signal_raises_comes_out_as_it_is(
    bundle: Path, kind: type[Exception]
) -> None:
    raised: list[Exception] = []

    def handle(*_: object) -> None:
        raised.append(kind("of the caller"))
        raise raised[-1]

    guard = Guard.load(bundle, threads=1)

    def score_until_the_alarm(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while len(raised) < attempt:
            guard.score_batch(["some words of a text"] * 256)

    before = signal.signal(signal.SIGALRM, handle)
    gc.disable()  # Hypothesis looks on, and Python drops what is raised in what it calls for that
    try:
        for attempt in range(1, 21):  # so many moments of the tokenizer's and the engine's work
            with pytest.raises(kind) as caught:
                score_until_the_alarm(1e-3 * attempt)
            assert caught.value is raised[-1]
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0 <= guard.score("hello").score <= 1


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="has a GPU provider"
)
def test_a_missing_provider_names_the_extra(bundle: Path, backend: Any) -> None:
    with pytest.raises(BackendError, match=rf"pip install '\.\[{backend}\]'"):
        Guard.load(bundle, backend=backend)


def test_an_unknown_provider_is_refused(bundle: Path) -> None:
    with pytest.raises(BackendError, match="NoSuchExecutionProvider"):
        Guard.load(bundle, providers=["NoSuchExecutionProvider"])


def test_a_source_that_is_nothing_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        Guard.load(tmp_path / "nowhere")
    wrong: Any
    for wrong in (None, b"guard", bytearray(b"guard"), [b"one", b"two"], [1, 2]):
        found = type(wrong[0] if isinstance(wrong, list) else wrong).__name__
        with pytest.raises(InputError, match=f"found {found}"):
            Guard.load(wrong)


def test_a_shipped_guard_is_loaded_by_its_name_once_it_was_exported(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "engines" / "tiny"
    recipe.mkdir(parents=True)
    (recipe / "recipe.json").touch()
    monkeypatch.setattr(shipped, "ENGINES", recipe.parent)
    monkeypatch.setattr(shipped, "IN_CHECKOUT", True)
    with pytest.raises(BundleError, match=r"no bundle at .*tiny/bundle yet.*siren export tiny"):
        Guard.load("tiny")
    shutil.copytree(bundle, recipe / "bundle")
    assert Guard.load("tiny").score("hello") == Guard.load(bundle).score("hello")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(BundleError, match=r"tiny/guard\.json: missing"):
        Guard.load("tiny")  # a folder of that name goes first


def test_an_installation_keeps_bundles_of_shipped_guards_where_one_is(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "tiny").mkdir(parents=True)
    (tmp_path / "site" / "tiny" / "recipe.json").touch()
    monkeypatch.setattr(shipped, "ENGINES", tmp_path / "site")
    monkeypatch.setattr(shipped, "IN_CHECKOUT", False)
    monkeypatch.chdir(tmp_path)
    assert shipped.default_bundle("tiny") == Path("tiny")
    with pytest.raises(BundleError, match=f"no bundle at {tmp_path}/tiny yet"):
        Guard.load("tiny")
    shutil.copytree(bundle, "tiny")
    Guard.load("tiny").score("hello")
