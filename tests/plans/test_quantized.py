"""int8 and int4 for TensorRT: weight-only for TensorRT-RTX, calibrated for the others."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from backbones import FAMILIES
from guards import load_guard
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.passes.calibration import measure_inputs, read_calibration
from siren_export.passes.example_texts import EXAMPLE_TEXTS
from siren_export.passes.four_bits import Grid, round_matrix
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.recipes import find_recipe
from siren_runtime.backends.shapes import Extent, Profile
from siren_runtime.backends.tensorrt.build import build_plan
from siren_runtime.errors import CheckpointError, InputError
from siren_runtime.text.tokenizer import Tokenizer
from texts import TEXTS

SHAPES = [Profile(Extent(1, 1), Extent(2, 16), Extent(4, 48))]
# Random weights amplify what rounding does to them, far more than trained ones.
LARGEST, MEAN = {"int8": 0.1, "int4": 0.6}, {"int8": 0.02, "int4": 0.2}
FITTED = {"calibration": TEXTS[:24]}  # fewer than the built-in texts, which take longer to measure
DATA = Path(__file__).parents[3] / "shared" / "data"
DATA_SETS = ("diasafety", "instructions", "openai_moderation")


def scores(folder, texts=TEXTS):
    with load_guard(folder, backend="cpu", threads=1) as guard:
        return np.array([result.score for result in guard.score_batch(texts)])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_stays_close_to_float32(export, name):
    expected = scores(export(name).path)
    for precision in LARGEST:
        bundle = export(name, precision=precision, target="tensorrt-rtx", **FITTED)
        difference = np.abs(scores(bundle.path) - expected)
        assert difference.max() <= LARGEST[precision]
        assert difference.mean() <= MEAN[precision]


@pytest.mark.parametrize(("name", "precision"), zip(FAMILIES, itertools.cycle(LARGEST)))
def test_every_family_compiles(export, rtx, name, precision):
    bundle = export(name, precision=precision, target="tensorrt-rtx", **FITTED)
    assert build_plan(bundle, rtx, profiles=SHAPES).read()


@pytest.mark.parametrize(("precision", "dtype"), [("int8", "INT8"), ("int4", "INT4")])
def test_every_linear_layer_is_quantized_and_its_matrix_gone(export, precision, dtype):
    bundle = export("qwen3", precision=precision, target="tensorrt-rtx")
    graph = onnx.load(str(bundle.path / "score.onnx"), load_external_data=False).graph
    layers = bundle.manifest.backbone.blocks_kept
    assert Counter(node.op_type for node in graph.node)["DequantizeLinear"] == 7 * layers
    kinds = {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            assert kinds[node.input[0]] == dtype
            assert kinds[node.input[1]] == "FLOAT16"
            assert node.input[0].removesuffix(f".{precision}") not in kinds


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt10"])
def test_another_target_is_refused_with_what_it_takes(export, target):
    with pytest.raises(InputError, match=r"int4.*only for onnxruntime and tensorrt-rtx.*fp16"):
        export("qwen3", precision="int4", target=target)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt10"])
@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_calibrated_int8_stays_close_to_float32(export, name, target):
    expected = scores(export(name).path)
    bundle = export(name, precision="int8", target=target, calibration=TEXTS[:24])
    difference = np.abs(scores(bundle.path) - expected)
    assert difference.max() <= 0.2
    assert difference.mean() <= 0.05
    graph = onnx.load(str(bundle.path / "score.onnx"), load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    layers = bundle.manifest.backbone.blocks_kept
    matrices, inputs = (6, 3) if name == "qwen3" else (5, 3)
    assert operators["QuantizeLinear"] == inputs * layers
    assert operators["DequantizeLinear"] == (matrices + inputs) * layers


@pytest.mark.parametrize(
    ("name", "target"), zip(FAMILIES, itertools.cycle(["tensorrt", "tensorrt10"]))
)
def test_every_family_with_rounded_activations_stays_close_to_float32(export, name, target):
    expected = scores(export(name).path)
    for precision, mean in (("int8", 0.05), ("fp8", 0.1)):
        bundle = export(name, precision=precision, target=target, **FITTED)
        assert np.abs(scores(bundle.path) - expected).mean() <= mean


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt10"])
def test_int8_without_calibration_texts_is_fitted_to_the_built_in_ones(export, target):
    expected = scores(export("qwen3").path)
    bundle = export("qwen3", precision="int8", target=target)
    assert np.abs(scores(bundle.path) - expected).mean() <= 0.05
    quantization = bundle.manifest.quantization
    assert quantization.built_in
    assert quantization.examples == len(EXAMPLE_TEXTS)


def test_a_calibration_file_without_a_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    for file in ("empty.txt", "missing.txt"):
        with pytest.raises(InputError, match=file):
            read_calibration(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "target"),
    [("qwen3", "tensorrt-rtx"), ("qwen3", "tensorrt10"), ("bert", "tensorrt")],
)
def test_float8_compiles_for_gpus_that_have_it_and_stays_close_to_float32(
    export, rtx, name, target
):
    expected = scores(export(name).path)
    bundle = export(name, precision="fp8", target=target, calibration=TEXTS[:24])
    difference = np.abs(scores(bundle.path) - expected)
    assert difference.max() <= 0.4
    assert difference.mean() <= 0.1
    graph = onnx.load(str(bundle.path / "score.onnx"), load_external_data=False).graph
    kinds = {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in graph.initializer}
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantized
    assert {kinds[node.input[2]] for node in quantized} == {"FLOAT8E4M3FN"}
    if target == "tensorrt-rtx":
        capabilities = ["8.9", "12.0"]
        assert build_plan(bundle, rtx, profiles=SHAPES, compute_capabilities=capabilities).read()


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_what_only_tensorrt_runs_is_refused_for_onnx_runtime(export, precision):
    with pytest.raises(InputError, match=f"{precision} is made for the TensorRT targets only"):
        export("qwen3", precision=precision, calibration=TEXTS[:2])


@pytest.fixture(scope="module")
def default_guard(tmp_path_factory):
    """Return a function: export options -> share of float32's verdicts kept on validation rows."""
    recipe = find_recipe("minilm")
    try:
        inputs = load_artifact(recipe.artifact), load_checkpoint(str(recipe.backbone()))
    except CheckpointError as error:
        pytest.skip(str(error))
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    texts = {"train": [], "validation": []}
    for name in DATA_SETS:
        lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        for split, count in (("train", 20), ("validation", 200)):
            found = [row for row in rows if row["split"] == split][:count]
            texts[split] += ["\n".join(filter(None, (r["prompt"], r["response"]))) for r in found]
    assert len(texts["validation"]) > 500
    folder = tmp_path_factory.mktemp("default")

    def verdicts(name, **options):
        export_bundle(*inputs, folder / name, calibration=texts["train"], **options)
        return scores(folder / name, texts["validation"]) >= inputs[0].threshold

    reference = verdicts("fp32")
    return lambda name, **options: np.mean(verdicts(name, **options) == reference)


@pytest.mark.parametrize(
    ("precision", "target", "share"),
    [
        ("int8", "tensorrt-rtx", 0.985),  # 99.5 % of 1,832 validation rows was seen
        ("int8", "tensorrt", 0.985),  # 99.6 % of 1,832
        ("int4", "tensorrt-rtx", 0.985),  # 99.3 % of 1,832, calibrated on more rows
    ],
)
def test_the_quantized_default_guard_keeps_its_verdicts(default_guard, precision, target, share):
    assert default_guard(f"{precision}-{target}", precision=precision, target=target) >= share


def test_calibration_rounds_four_bits_to_products_closer_to_float32():
    random = np.random.default_rng(0)
    # Inputs that go together, as a layer's do, some of them large.
    inputs = random.normal(size=(512, 24)) @ random.normal(size=(24, 128))
    inputs = (inputs * random.lognormal(size=128)).astype(np.float32)
    matrix = random.normal(size=(128, 64)).astype(np.float32)
    groups = inputs.reshape(512, 2, 64)
    moments = np.einsum("tgi,tgj->gij", groups, groups)
    for grid in (
        Grid(16, signed=False, stored=np.float16),
        Grid(32, signed=True, stored=np.float32),
    ):
        errors = []
        for given in (None, moments):
            integers, scales = round_matrix(matrix, grid, given)
            assert integers.min() >= -8
            assert integers.max() <= 7
            assert grid.signed or (scales > 0).all()
            np.testing.assert_array_equal(scales, scales.astype(grid.stored))
            restored = integers * np.repeat(scales, grid.block, axis=0)
            assert np.abs(restored - matrix).mean() < 0.2
            errors.append(np.linalg.norm(inputs @ (restored - matrix)))
        assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt-rtx"])
@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_fitted_int4_stays_closer_to_float32_than_int4_to_nearest(
    export, name, target, monkeypatch
):
    def features(**options):
        with load_guard(export(name, **options).path, backend="cpu", threads=1) as guard:
            return np.stack([r.features for r in guard.score_batch(TEXTS, features=True)])

    expected, int4 = features(), {"precision": "int4", "target": target}
    fitted = features(calibration=TEXTS, **int4)
    monkeypatch.setattr("siren_export.export.calibrate", lambda *arguments: None)
    nearest = features(calibration=["not measured"], **int4)
    assert np.linalg.norm(fitted - expected) < np.linalg.norm(nearest - expected)


def test_inputs_that_are_always_zero_round_to_nearest():
    matrix = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    grid = Grid(16, signed=False, stored=np.float16)
    for found, expected in zip(
        round_matrix(matrix, grid, np.zeros((1, 32, 32), np.float32)),
        round_matrix(matrix, grid),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_calibration_measures_the_inputs_of_every_layer(export, monkeypatch):
    measured = {}

    def keep(*arguments, **options):
        measured.update(measure_inputs(*arguments, **options))
        return measured

    monkeypatch.setattr("siren_export.export.measure_inputs", keep)
    export("qwen3", precision="int4", target="tensorrt-rtx", calibration=TEXTS[:8])
    assert measured
    for inputs in measured.values():
        diagonal = np.einsum("gii->gi", inputs.moments).reshape(-1)
        assert inputs.largest.shape == diagonal.shape
        assert (inputs.largest**2 <= diagonal * (1 + 1e-3)).all()
        np.testing.assert_allclose(inputs.moments, inputs.moments.transpose(0, 2, 1), rtol=1e-3)


def test_calibration_that_sees_what_is_not_finite_is_refused(export, tmp_path):
    bundle = export("qwen3", precision="fp32", stream=False)
    model = onnx.load(bundle.path / "score.onnx")
    matrix = next(t for t in model.graph.initializer if t.name.endswith("0/mlp/up_proj/weight"))
    values = numpy_helper.to_array(matrix).copy()
    values[0, 0] = np.nan
    matrix.CopyFrom(numpy_helper.from_array(values, matrix.name))
    broken = tmp_path / "broken"
    broken.mkdir()
    onnx.save(model, broken / "score.onnx")
    tokenizer = Tokenizer(bundle.path / "tokenizer.json", 48)
    with pytest.raises(InputError, match=r"down_proj.* is not finite"):
        measure_inputs(broken / "score.onnx", tokenizer, TEXTS[:2])


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt-rtx"])
def test_the_bundle_says_what_it_was_fitted_to_and_what_has_8_bits(export, target):
    bundle = export("qwen3", precision="int4", target=target, calibration=TEXTS[:8])
    found = bundle.manifest.quantization
    assert (found.examples, found.built_in) == (8, False)
    graph = onnx.load(str(bundle.path / "score.onnx"), load_external_data=False).graph
    layers = {i.name for i in graph.initializer if i.name.startswith("layers")}
    eight = {name.removesuffix(".int8") for name in layers if name.endswith(".int8")}
    assert set(found.wider) == eight
    assert eight < {name.rpartition(".")[0] for name in layers if "/weight." in name}
    assert export("qwen3").manifest.quantization is None
