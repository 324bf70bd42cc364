"""A plan runs only where its record says, and a record is believed only for its own plan."""

import resource
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from saved_plans import save
from siren_runtime import Guard
from siren_runtime.backends.tensorrt.library import Library, load_library
from siren_runtime.backends.tensorrt.plan import (
    find_plan,
    mismatches,
    plans_folder,
    read_record,
)
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.commands.inspect import app
from siren_runtime.errors import BackendError, InputError
from tiny_bundle import edit_model

LIBRARY = Library("tensorrt", None, "10.3.0")


def test_a_written_plan_is_found_and_read(tiny):
    path = save(tiny)
    plan = find_plan(tiny, "score", LIBRARY, "8.7")
    assert plan.path == path
    assert plan.read() == b"a plan"


def test_a_plan_that_does_not_fit_the_disk_leaves_the_old_one_as_it_was(tiny):
    save(tiny)
    largest, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(BackendError, match=r"score\.plan: cannot be written"):
            save(tiny, data=bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    assert find_plan(tiny, "score", LIBRARY, "8.7").read() == b"a plan"
    assert len(list((tiny.path / "plans").iterdir())) == 2


def test_the_newest_of_several_fitting_plans_is_taken(tiny):
    save(tiny, name="a", created="2026-02-01T00:00:00+00:00")
    save(tiny, name="b", created="2026-01-01T00:00:00+00:00")
    assert find_plan(tiny, "score", LIBRARY, "8.7").path.name == "a.plan"


def test_without_a_plan_the_error_says_how_to_make_one(tiny):
    with pytest.raises(BackendError, match=r"no tensorrt 10\.3\.0 plan.*siren build .*tensorrt"):
        find_plan(tiny, "score", LIBRARY, "8.7")


@pytest.mark.parametrize(
    ("changes", "library", "capability", "message"),
    [
        ({"library_version": "10.2.0"}, LIBRARY, "8.7", r"tensorrt 10\.2\.0, installed is tenso"),
        ({}, LIBRARY, "8.9", r"compute capability 8\.7, the GPU here has 8\.9"),
        ({"sources": {"score.onnx": "0" * 64}}, LIBRARY, "8.7", "stale"),
    ],
    ids=["version", "gpu", "stale"],
)
def test_a_plan_that_does_not_match_is_refused_with_what_would(
    tiny, changes, library, capability, message
):
    save(tiny, **changes)
    with pytest.raises(BackendError, match=message):
        find_plan(tiny, "score", library, capability)


def test_a_portable_plan_is_left_to_the_library_to_judge(tiny):
    save(tiny, compute_capabilities=[])
    record = find_plan(tiny, "score", LIBRARY, "9.9").record
    assert mismatches(record, tiny, LIBRARY, "9.9") == []


def test_a_new_graph_makes_the_plan_stale(tiny):
    save(tiny)
    edit_model(tiny.path, lambda model: setattr(model, "producer_name", "another"))
    with pytest.raises(BackendError, match=r"another score\.onnx.*stale"):
        find_plan(load_bundle(tiny.path), "score", LIBRARY, "8.7")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"a pl"), r"4 bytes, its record says 6.*truncated"),
        (lambda path: path.write_bytes(b"A plan"), r"SHA-256 .*changed"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["truncated", "changed", "missing"],
)
def test_a_damaged_plan_is_refused_before_it_is_loaded(tiny, damage, message):
    damage(save(tiny))
    with pytest.raises(BackendError, match=message):
        find_plan(tiny, "score", LIBRARY, "8.7").read()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"record_version": 2}'], ids=repr
)
def test_a_damaged_record_is_an_error_that_names_it(tiny, data):
    path = save(tiny).with_suffix(".json")
    path.write_bytes(data)
    with pytest.raises(BackendError, match=path.name):
        read_record(path)
    with pytest.raises(BackendError, match=path.name):
        find_plan(tiny, "score", LIBRARY, "8.7")


def test_a_folder_among_the_plans_that_leaves_the_bundle_is_refused(tiny, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (plans_folder(tiny) / "kept").symlink_to(tmp_path / "elsewhere")
    for inside in (["kept"], ["kept", "more"]):
        with pytest.raises(BackendError, match="leaves the bundle"):
            plans_folder(tiny, *inside)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_plans_folder_that_leaves_the_bundle_is_refused(tiny, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tiny.path / "plans").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="leaves the bundle"):
        plans_folder(tiny)
    with pytest.raises(BackendError, match="leaves the bundle"):
        find_plan(tiny, "score", LIBRARY, "8.7")
    with Guard.load(tiny.path) as guard:  # which takes no plan of that folder
        assert guard.backend == "cpu"


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_a_missing_library_names_the_extra():
    with pytest.raises(BackendError, match=r"\.\[tensorrt\]"):
        load_library("tensorrt")


def test_a_rtx_only_option_is_refused_for_tensorrt():
    with pytest.raises(InputError, match="only tensorrt-rtx"):
        LIBRARY.target(None, ["8.6"])


def shown(bundle, *options):
    result = CliRunner().invoke(app, [str(bundle.path), *options], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_inspect_shows_what_each_plan_was_compiled_for_and_whether_it_matches(tiny):
    assert "plan " not in shown(tiny)
    save(tiny)
    (line,) = [line for line in shown(tiny).splitlines() if "score.plan" in line]
    for fact in ("tensorrt 10.3.0", "capability 8.7", "1x1:1x32:1x32", "6 bytes"):
        assert fact in line
    assert line.rstrip().endswith("matches the bundle")
    assert "the plan has its SHA-256" in shown(tiny, "--check")


def test_inspect_tells_a_stale_a_truncated_a_changed_and_an_unreadable_plan(tiny):
    save(tiny, name="old", sources={"score.onnx": "0" * 64})
    save(tiny, name="short").write_bytes(b"a pl")
    save(tiny, name="changed").write_bytes(b"A plan")
    save(tiny, name="unreadable").with_suffix(".json").write_bytes(b"{}")
    lines = {line.split()[0]: line for line in shown(tiny, "--check").splitlines() if line.strip()}
    assert "stale" in lines["old.plan"]
    assert "4 bytes" in lines["short.plan"]
    assert "was changed" in lines["changed.plan"]
    assert "not a plan's record" in lines["unreadable.plan"]
