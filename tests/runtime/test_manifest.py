"""guard.json: what is written is read back, and nothing else is taken for a manifest."""

import copy
import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siren_runtime import BundleError
from siren_runtime.bundle.manifest import check_relative, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "guard.json").read_bytes())


def _refuse(value: Any, match: str = "guard") -> None:
    with pytest.raises(BundleError, match=match):
        decode(json.dumps(value).encode(), "guard.json")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and value:
        yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            yield from _objects(child)


def test_a_manifest_survives_writing_and_reading(bundle: Path) -> None:
    data = (bundle / "guard.json").read_bytes()
    assert encode(decode(data, "guard.json")) == data


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"x/guard\.json"):
        decode(data, "x/guard.json")


@given(JSON)
def test_arbitrary_json_is_refused(value: Any) -> None:
    _refuse(value)
    _refuse({"format_version": 1, "task": value})


@given(st.data())
def test_a_field_replaced_by_arbitrary_json_is_refused_or_kept(
    manifest: dict[str, Any], data: st.DataObject
) -> None:
    changed = copy.deepcopy(manifest)
    target = data.draw(st.sampled_from([*_objects(changed)]))
    target[data.draw(st.sampled_from([*target]))] = data.draw(JSON)
    try:
        decoded = decode(json.dumps(changed).encode(), "guard.json")
    except BundleError:
        return
    assert decode(encode(decoded), "guard.json") == decoded


def test_every_required_field_is_needed_and_no_other_allowed(manifest: dict[str, Any]) -> None:
    optional = {"reason", "reference", "texts", "bound", "worst_text", "verdict_agreement"}
    optional |= {
        "bounded",
        "max_difference",
        "stream_texts",
        "stream_bound",
        "stream_max_difference",
        "stream_mean_difference",
        "stream_bounded",
        "mean_difference",
        "context_length",
        "vocab_size",
        "digest",
        "named",
    }
    optional |= {
        "labels",
        "tiers",
        "spans",
        "temperature",
        "smoothing",
        "responses",
        "saturation_free",
        "weights_sha256",
        "tuning",
        "note",
        "carried_over",
        "quantization",
    }
    optional |= {
        "activation",
        "openai",
        "neurons",
        "decisions",
        "further",
        "cascade",
        "orders",
        "rank",
        "trajectory",
    }
    optional |= {"exit_texts", "exit_bound", "exit_max_difference"}
    optional |= {"batch_texts", "batch_max_difference", "batch_mean_difference"}
    free = [manifest[name] for name in ("files", "graphs", "versions", "heads")]
    for position, original in enumerate(_objects(manifest)):
        if original in free:
            continue
        for key in {*original} - optional:
            changed = copy.deepcopy(manifest)
            del [*_objects(changed)][position][key]
            _refuse(changed)
        changed = copy.deepcopy(manifest)
        [*_objects(changed)][position]["future_rule"] = True
        _refuse(changed, "future_rule")


@pytest.mark.parametrize(
    ("version", "hint"),
    [(0, "export the bundle again"), (3, "update siren-edge"), (10**30, "guard.json")],
)
def test_another_format_version_is_refused_before_its_fields_are_looked_at(
    version: int, hint: str
) -> None:
    _refuse({"format_version": version, "shape": "of the future"}, hint)


def test_format_1_is_read_as_what_it_is_now(manifest: dict[str, Any]) -> None:
    old = copy.deepcopy(manifest) | {"format_version": 1}
    old["head"] = old.pop("heads")["harm"]
    candidate = {
        "precision": "int8", "keep_float": [], "bytes": 1, "milliseconds": 1.0, "speed": 2.0,
        "mean_difference": 0.0, "p99_difference": 0.0, "max_difference": 0.0,
        "changed_verdicts": 0, "outcome": "kept",
    }  # fmt: skip
    tuning = {"budget": 0.1, "texts": 3}
    now = decode(
        json.dumps(manifest | {"tuning": tuning | {"candidates": [candidate]}}).encode(), ""
    )
    was = decode(json.dumps(old | {"tuning": tuning | {"trials": [candidate]}}).encode(), "")
    assert was == now
    _refuse(old | {"heads": manifest["heads"]}, "heads")
    _refuse({**old, "head": None})
    _refuse({key: value for key, value in old.items() if key != "head"}, "heads")
    _refuse(manifest | {"head": old["head"]}, "head")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(BundleError):
        decode(b'{"format_version":' + b"[" * 100_000, "guard.json")


def _set(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = to

    return change


NO_TENSORS = {"file": "score.onnx", "opset": 23, "inputs": [], "outputs": []}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set("graphs", to={}), "no 'score'"),
        (_set("files", to={}), "files lacks"),
        (_set("temperature", to=1e-60), "temperature"),  # 0 in float32: every score would be NaN
        (_set("temperature", to=1e9), "temperature"),
        (_set("smoothing", to=0), "smoothing"),
        (_set("smoothing", to=2.5), "smoothing"),
        (_set("smoothing", to=1 << 20), "smoothing"),
        (_set("graphs", "score", "file", to="other.onnx"), "other.onnx"),
        (_set("graphs", "score", "file", to="weights.bin"), "expected an .onnx file"),
        (_set("graphs", "score", "inputs", to=[]), "graphs.score.inputs"),
        (_set("graphs", "score", "inputs", 0, "dtype", to="int32"), "int32"),
        (_set("graphs", "score", "outputs", 2, "shape", to=["batch", 9]), "features: float32"),
        (_set("graphs", "spans", to=NO_TENSORS), "graphs.spans.inputs"),
        (_set("heads", "harm", "features", to=9), "features: float32"),
        (_set("heads", "harm", "layers", to=[1, 0]), "ascend"),
        (_set("heads", "harm", "layers", to=[0, 0, 1]), "ascend"),
        (_set("heads", "harm", "layers", to=[0, 3]), "ascend"),
        (_set("heads", "harm", "layers", to=[]), "ascend"),
        (_set("backbone", "blocks", to=1), "exceeds"),
        (_set("threshold", to=1.5), "threshold"),
        (_set("threshold", to=None), "threshold"),
        (_set("task", to="trajectory"), "task"),
        (
            _set("weights_sha256", to={"other": "0" * 64}),
            r"those of \['other'\], heads",
        ),
        (_set("weights_sha256", to={"harm": "0" * 63}), "weights_sha256"),
        (_set("text", "cleaner", to="none"), "cleaner"),
        (_set("text", "max_length", to=0), "max_length"),
        (_set("files", "weights.bin", "size", to=-1), "size"),
        (_set("files", "weights.bin", "sha256", to="A" * 64), "sha256"),
        (_set("files", "../weights.bin", to={"size": 0, "sha256": "0" * 64}), "weights.bin"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    manifest: dict[str, Any], change: Callable[[dict[str, Any]], None], match: str
) -> None:
    changed = copy.deepcopy(manifest)
    change(changed)
    _refuse(changed, match)


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", "./a", "a/", "a//b"),
        *("a\\b", "C:a", "C:\\a", "a\0b", "//host/share"),
    ],
)
def test_a_path_that_could_leave_the_folder_is_refused(path: str) -> None:
    with pytest.raises(BundleError, match="plain relative path"):
        check_relative(path, "guard.json")


@given(st.text(alphabet=string.ascii_letters + "./_-\\:", max_size=12))
def test_a_path_that_passes_stays_inside_the_folder(path: str) -> None:
    try:
        check_relative(path, "guard.json")
    except BundleError:
        return
    inside = Path("/bundle", path)
    assert inside.parts[:2] == ("/", "bundle")
    assert ".." not in inside.parts
    assert str(inside) == f"/bundle/{path}"
