"""`siren build` compiles on a machine without a GPU; what it writes says what it is."""

import gc
import hashlib
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from siren_runtime.backends.shapes import default_profiles, parse_profile
from siren_runtime.backends.tensorrt.build import build_plan
from siren_runtime.backends.tensorrt.library import make_logger, open_interface
from siren_runtime.backends.tensorrt.plan import find_plan
from siren_runtime.bundle import shipped
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.commands import build
from siren_runtime.commands.build import app
from siren_runtime.errors import BackendError, InputError
from tiny_bundle import edit_model, make_bundle


def test_a_plan_is_compiled_recorded_and_found(tiny, rtx):
    steps = []
    plan = build_plan(tiny, rtx, progress=lambda *step: steps.append(step))
    data = plan.read()
    record = find_plan(tiny, "score", rtx, None).record
    assert record == plan.record
    assert record.flavor == "tensorrt-rtx"
    assert record.library_version == rtx.version
    assert record.profiles == default_profiles(tiny.manifest.text.max_length)
    assert record.sources == {
        name: hashlib.sha256((tiny.path / name).read_bytes()).hexdigest()
        for name in ("score.onnx", "weights.bin")
    }
    assert (record.size, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert steps[-1][1] == steps[-1][2]


def test_the_bundle_stays_as_it_was_exported(tiny, rtx):
    before = (tiny.path / "guard.json").read_bytes()
    build_plan(tiny, rtx)
    assert (tiny.path / "guard.json").read_bytes() == before
    assert load_bundle(tiny.path, verify="full").manifest == tiny.manifest


def test_options_reach_the_library_and_the_record(tiny, rtx):
    shape = parse_profile("1x1:2x8:4x16")
    plan = build_plan(
        tiny, rtx, profiles=[shape], compute_capabilities=["8.6", "8.9"], workspace_bytes=1 << 26
    )
    assert plan.record.profiles == [shape]
    assert plan.record.compute_capabilities == ["8.6", "8.9"]
    assert plan.path.name.endswith("-sm86-sm89.plan")


def test_the_timing_cache_is_kept_and_used_again(tiny, rtx):
    build_plan(tiny, rtx)
    (cache,) = (tiny.path / "plans").glob("*.timing-cache")
    assert cache.stat().st_size > 0
    build_plan(tiny, rtx)
    assert list((tiny.path / "plans").glob("*.timing-cache")) == [cache]
    cache.write_bytes(b"damaged")
    build_plan(tiny, rtx)
    assert cache.read_bytes() != b"damaged"


def test_the_librarys_messages_are_told_from_the_level_on_that_was_asked_for(tiny, rtx):
    told, quiet = [], []
    build_plan(tiny, rtx, log_level="verbose", log=told.append)
    build_plan(tiny, rtx, log=quiet.append)
    assert len(told) > 10
    assert quiet == []


def test_float32_is_multiplied_as_float32(tiny, rtx):
    configs = []

    class Builder(rtx.trt.Builder):
        def create_builder_config(self):
            configs.append(super().create_builder_config())
            assert configs[-1].get_flag(rtx.trt.BuilderFlag.TF32)
            return configs[-1]

    module = SimpleNamespace(**{**vars(rtx.trt), "Builder": Builder})
    assert build_plan(tiny, replace(rtx, trt=module)).read()
    assert [config.get_flag(rtx.trt.BuilderFlag.TF32) for config in configs] == [False]


def test_an_unknown_compute_capability_is_refused_with_the_known_ones(tiny, rtx):
    with pytest.raises(InputError, match=r"'8\.7' is not one .*8\.6"):
        build_plan(tiny, rtx, compute_capabilities=["8.7"])


def test_a_node_that_the_parser_does_not_know_is_named(tiny, rtx):
    def rename(model):
        model.graph.node[8].op_type = "MatMulInteger"
        model.graph.node[8].name = "layers.3/mlp/down_proj/MatMul"

    edit_model(tiny.path, rename)
    node = r"layers\.3/mlp/down_proj/MatMul.*MatMulInteger"
    bundle = load_bundle(tiny.path)
    own = Bundle(tiny.path, msgspec.structs.replace(bundle.manifest, target="tensorrt-rtx"))
    with pytest.raises(BackendError, match=node):
        build_plan(own, rtx)
    lines = []
    with pytest.raises(BackendError, match="export for it with siren export --target") as told:
        build_plan(bundle, rtx, log_level="warning", log=lines.append)
    assert "MatMulInteger" not in str(told.value)
    assert any(re.search(node, line) for line in lines)
    assert not list((tiny.path / "plans").glob("*.plan"))


def test_the_command_compiles_and_says_where(tiny, rtx):
    result = CliRunner().invoke(
        app, [str(tiny.path), "--flavor", "tensorrt-rtx", "--profile", "1x1:1x8:2x16"]
    )
    assert result.exit_code == 0, result.output
    assert "1x1:1x8:2x16" in result.stderr
    assert result.stdout == ""


def test_a_folder_that_cannot_be_written_is_refused_before_compiling(tiny, rtx, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tiny.path / "plans")
    steps = []
    with pytest.raises(BackendError, match="plans: cannot be written"):
        build_plan(tiny, rtx, progress=lambda *step: steps.append(step))
    assert steps == []


@pytest.mark.parametrize("called", ["log", "progress"])
def test_control_c_ends_a_build_as_control_c(tiny, rtx, called):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(
                tiny,
                rtx,
                log_level="verbose",
                **{called: lambda *_: signal.raise_signal(signal.SIGINT)},
            )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list((tiny.path / "plans").glob("*.plan"))


@pytest.mark.parametrize("workspace", ["inf", "1e30"])
def test_a_workspace_beyond_every_gpu_is_wrong_use(tiny, workspace):
    arguments = [str(tiny.path), "--flavor", "tensorrt-rtx", "--workspace", workspace]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "1048576" in result.stderr


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("tensorrt-rtx", "; try other profiles, whose greatest length is longer"),
        ("onnxruntime", "; export for it with siren export --target tensorrt-rtx"),
    ],
)
def test_what_cannot_be_compiled_says_what_else_to_try(tiny, rtx, target, hint):
    def cut(model):  # 7 scores of every batch
        model.graph.initializer.append(numpy_helper.from_array(np.array([7]), "seven"))
        model.graph.node[-1].output[0] = "all"
        model.graph.node.append(helper.make_node("Reshape", ["all", "seven"], ["score"]))

    edit_model(tiny.path, cut)
    manifest = msgspec.structs.replace(load_bundle(tiny.path).manifest, target=target)
    bundle = Bundle(tiny.path, manifest)
    for log_level in ("error", "warning"):
        lines = []
        with pytest.raises(BackendError, match=f"cannot compile the score graph.*{hint}$") as told:
            build_plan(bundle, rtx, log_level=log_level, log=lines.append)
        of_library = any(".cpp" in line for line in lines)
        assert of_library == (log_level == "warning")
        assert (".cpp" in str(told.value)) == (target != "onnxruntime")


def test_no_garbage_is_collected_while_tensorrt_starts(rtx):
    """A builder in it would wait for the lock that TensorRT holds while it logs."""
    first = open_interface(rtx, "Builder", make_logger(rtx, "error", print))
    collects = []
    logger = make_logger(rtx, "verbose", lambda _: collects.append(gc.isenabled()))
    assert open_interface(rtx, "Builder", logger)  # it says that its logger is not the first's
    assert first
    assert collects
    assert not any(collects)
    assert gc.isenabled()


def test_none_is_collected_while_the_slower_of_two_threads_starts_it():
    collects = []

    def start(seconds):
        time.sleep(seconds)
        collects.append(gc.isenabled())
        return seconds

    library = SimpleNamespace(trt=SimpleNamespace(Builder=start))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seconds: open_interface(library, "Builder", seconds), (0.05, 0.2)))
    assert collects == [False, False]
    assert gc.isenabled()


def test_a_shipped_guard_is_compiled_by_its_name(tmp_path, monkeypatch):
    recipe = tmp_path / "engines" / "tiny"
    make_bundle(recipe / "bundle")
    (recipe / "recipe.json").touch()
    monkeypatch.setattr(shipped, "ENGINES", recipe.parent)
    monkeypatch.setattr(shipped, "IN_CHECKOUT", True)
    compiled = []

    def compile_none(opened, *_, **__):
        compiled.append(opened.path)
        raise BackendError("no library here")

    monkeypatch.setattr(build, "load_library", lambda flavor: None)
    monkeypatch.setattr(build, "build_plan", compile_none)
    CliRunner().invoke(build.app, ["tiny", "--flavor", "tensorrt-rtx"])
    assert compiled == [recipe / "bundle"]
