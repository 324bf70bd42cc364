"""Every family, both poolings and the default guard parse and compile in TensorRT-RTX."""

import itertools

import pytest

from backbones import FAMILIES
from models import make_artifact, make_forecast, make_labels
from polynomials import make_polynomial
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.sources.recipes import find_recipe
from siren_runtime.backends.shapes import Extent, Profile
from siren_runtime.backends.tensorrt.build import build_plan
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.errors import BackendError, CheckpointError
from texts import TEXTS
from trajectories import CHATML, make_chat_backbone, make_trajectory_head

SHAPES = [Profile(Extent(1, 1), Extent(2, 16), Extent(4, 48))]
POOLINGS = ("residual_mean", "mlp_mean")


@pytest.mark.parametrize(("name", "pooling"), zip(FAMILIES, itertools.cycle(POOLINGS)))
def test_float16_compiles_as_it_is_authored(export, rtx, name, pooling):
    bundle = export(name, pooling=pooling, precision="fp16", target="tensorrt-rtx")
    assert build_plan(bundle, rtx, profiles=SHAPES).read()


# Of each family one of the pairs that no test compiles of all families.
@pytest.mark.parametrize(
    ("name", "pair"),
    zip(
        FAMILIES,
        itertools.cycle(
            [
                ("tensorrt-rtx", "fp32"),
                ("tensorrt10", "fp8"),
                ("tensorrt-rtx", "bf16"),
                ("tensorrt10", "int8"),
                ("tensorrt-rtx", "fp8"),
                ("tensorrt10", "fp32"),
                ("tensorrt10", "bf16"),
            ]
        ),
    ),
)
def test_every_family_compiles_in_another_precision(export, rtx, name, pair):
    target, precision = pair
    fitted = {"calibration": TEXTS[:8]} if precision in ("int8", "fp8") else {}
    bundle = export(name, precision=precision, target=target, **fitted)
    gpus = {"compute_capabilities": ["8.9", "12.0"]} if precision == "fp8" else {}
    assert build_plan(bundle, rtx, profiles=SHAPES, **gpus).read()


@pytest.mark.parametrize(("name", "target"), [("qwen3", "tensorrt-rtx"), ("bert", "tensorrt10")])
def test_bfloat16_compiles(export, rtx, name, target):
    bundle = export(name, precision="bf16", target=target)
    assert build_plan(bundle, rtx, profiles=SHAPES).read()


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_float32_compiles_for_the_target(export, rtx, name):
    assert build_plan(export(name, target="tensorrt-rtx"), rtx, profiles=SHAPES).read()


@pytest.mark.parametrize(("name", "pooling"), zip(FAMILIES, itertools.cycle(POOLINGS[::-1])))
def test_tensorrt10_compiles(export, rtx, name, pooling):
    bundle = export(name, pooling=pooling, precision="fp16", target="tensorrt10")
    assert build_plan(bundle, rtx, profiles=SHAPES).read()


def test_float32_for_another_target_is_refused_with_the_target_to_export_for(export, rtx):
    lines = []
    options = {"log_level": "warning", "log": lines.append}
    with pytest.raises(BackendError, match=r"siren export --target tensorrt-rtx$") as told:
        build_plan(export("qwen3"), rtx, profiles=SHAPES, **options)
    assert "Attention" not in str(told.value)
    assert any("Attention" in line for line in lines)


@pytest.mark.parametrize(
    ("target", "precision"),
    [("tensorrt-rtx", "fp16"), ("tensorrt10", "fp16"), ("tensorrt-rtx", "int4")],  # 8 bits too
)
def test_the_default_guard_compiles(tmp_path, rtx, target, precision):
    recipe = find_recipe("minilm")
    try:
        checkpoint = load_checkpoint(str(recipe.backbone()))
    except CheckpointError as error:
        pytest.skip(str(error))
    options = {"precision": precision, "target": target, "calibration": TEXTS[:8]}
    export_bundle(load_artifact(recipe.artifact), checkpoint, tmp_path / "b", **options)
    plan = build_plan(load_bundle(tmp_path / "b"), rtx)
    assert len(plan.record.profiles) == 2
    assert plan.read()


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_several_heads_compile_whole_and_growing(tmp_path, backbone_folder, rtx, name):
    backbone = backbone_folder(name)
    heads = {
        "harm": load_artifact(make_artifact(tmp_path / "harm", backbone, layers=[0, 2])),
        "jailbreak": load_artifact(make_artifact(tmp_path / "more", backbone, layers=[1], seed=2)),
        "kinds": load_artifact(make_labels(tmp_path / "kinds", backbone, layers=[0, 1])),
        "poly": load_artifact(make_polynomial(tmp_path / "poly", backbone)),
        "ahead": load_artifact(make_forecast(tmp_path / "ahead", backbone)),
    }
    options = {"precision": "fp16", "target": "tensorrt-rtx"}
    export_bundle(together(heads), load_checkpoint(backbone), tmp_path / "bundle", **options)
    bundle = load_bundle(tmp_path / "bundle")
    assert build_plan(bundle, rtx, profiles=SHAPES).read()
    if "stream" in bundle.manifest.graphs:
        shapes = [Profile(Extent(1, 1, 1), Extent(1, 1, 16), Extent(2, 8, 64))]
        assert build_plan(bundle, rtx, "stream", profiles=shapes).read()


@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt10"])
def test_a_trajectory_head_compiles(tmp_path, backbone_folder, rtx, target):
    chat = make_chat_backbone(tmp_path / "chat", backbone_folder("qwen3"), CHATML)
    artifact = load_artifact(make_trajectory_head(tmp_path / "head", chat))
    export_bundle(artifact, load_checkpoint(chat), tmp_path / "b", precision="fp16", target=target)
    bundle = load_bundle(tmp_path / "b")
    assert build_plan(bundle, rtx, profiles=SHAPES).read()
    shapes = [Profile(Extent(1, 1, 1), Extent(1, 1, 16), Extent(2, 8, 64))]
    assert build_plan(bundle, rtx, "stream", profiles=shapes).read()
