"""The Q4_0 blocks of a GGUF file in a graph for TensorRT-RTX, whose blocks are of 16 else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from gguf_files import write_gguf
from guards import load_guard
from models import make_artifact
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import Checkpoint, load_checkpoint
from siren_export.sources.gguf_weights import GgufWeights
from siren_runtime.backends.shapes import Extent, Profile
from siren_runtime.backends.tensorrt.build import build_plan
from siren_runtime.backends.tensorrt.library import Library
from siren_runtime.bundle.reader import Bundle, load_bundle

TEXTS = ("How do I bake bread?", "foxes in boxes " * 8, "Où est la gare? 42", "a")
MATRICES = 4 * 7
BLOCK = 32


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, backbone_folder: Callable[[str], Path]
) -> tuple[Checkpoint, Bundle, Bundle]:
    """Return a Q4_0 file, a row of it zeros, its float32 bundle and its int4 one for RTX."""
    folder = tmp_path_factory.mktemp("carried")
    backbone = shutil.copytree(backbone_folder("llama"), folder / "backbone")
    tensors = load_file(backbone / "model.safetensors")
    tensors["model.layers.1.mlp.gate_proj.weight"][3] = 0
    save_file(tensors, backbone / "model.safetensors", metadata={"format": "pt"})
    path = write_gguf(folder / "model.gguf", backbone, types={"blk": "Q4_0"})
    checkpoint = load_checkpoint(path)
    artifact = load_artifact(str(make_artifact(folder / "head", backbone)))
    export_bundle(artifact, checkpoint, folder / "fp32")
    rtx = {"precision": "int4", "target": "tensorrt-rtx", "calibration": TEXTS}
    export_bundle(artifact, checkpoint, folder / "int4", **rtx)
    return checkpoint, load_bundle(folder / "fp32"), load_bundle(folder / "int4")


def test_levels_and_scales_are_those_of_the_file(
    exported: tuple[Checkpoint, Bundle, Bundle],
) -> None:
    checkpoint, _, bundle = exported
    weights = checkpoint.weights
    assert isinstance(weights, GgufWeights)
    for graph in ("score", "stream"):
        model = onnx.load(bundle.file(bundle.manifest.graphs[graph].file))
        found = {i.name: i for i in model.graph.initializer}
        names = [name.removesuffix(".int4") for name in found if name.endswith(".int4")]
        assert len(names) == bundle.manifest.carried_over == MATRICES
        signs = set()
        for name in names:
            levels, scales = levels_and_scales(weights.stored_rows(name.replace("/", ".")))
            np.testing.assert_array_equal(
                numpy_helper.to_array(found[f"{name}.int4"]).astype(np.int8), levels.T
            )
            headroom = 2.0**-4 if "up_proj" in name else 1.0
            np.testing.assert_array_equal(
                numpy_helper.to_array(found[f"{name}.scale"]), scales.T * np.float16(headroom)
            )
            signs |= set(np.sign(scales).reshape(-1))
        assert signs == {-1, 0, 1}


def levels_and_scales(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What Q4_0's bytes hold: int8 [out, in] from -8 to 7, and float16 [out, in / BLOCK]."""
    blocks = rows.reshape(len(rows), -1, 2 + BLOCK // 2)
    halves = np.concatenate([blocks[:, :, 2:] & 15, blocks[:, :, 2:] >> 4], axis=2)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)
    return halves.reshape(len(rows), -1).astype(np.int8) - 8, scales[:, :, 0]


def test_scores_are_those_of_the_float32_bundle(
    exported: tuple[Checkpoint, Bundle, Bundle],
) -> None:
    """Of texts and of streams, in ONNX Runtime, which by itself would round what products read."""
    exact, carried = (load_guard(bundle.path, backend="cpu") for bundle in exported[1:])
    with exact, carried:
        for text in TEXTS:
            expected = exact.score(text).score
            assert carried.score(text).score == pytest.approx(expected, abs=2e-3)
            with carried.stream() as ours, exact.stream() as theirs:
                expected = theirs.feed(text).score
                assert ours.feed(text).score == pytest.approx(expected, abs=2e-3)
        assert any(0.001 < exact.score(text).score < 0.999 for text in TEXTS)


def test_tensorrt_rtx_compiles_them(
    exported: tuple[Checkpoint, Bundle, Bundle], rtx: Library
) -> None:
    """Negative scales and those of zero too."""
    shapes = [Profile(Extent(1, 1), Extent(2, 16), Extent(4, 48))]
    assert build_plan(exported[2], rtx, profiles=shapes).read()
