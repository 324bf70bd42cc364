"""Every type of stored tensor that the gguf package dequantizes is read as it does."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from gguf_files import random_rows
from siren_export.sources.gguf_file import GgufFile
from siren_export.sources.gguf_weights import open_weights
from siren_runtime.errors import CheckpointError

HEADS, ROWS, CHANNELS = 2, 24, 512


def dequantizes(kind: GGMLQuantizationType) -> bool:
    try:
        gguf.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


QUANTIZED = [kind.name for kind in GGMLQuantizationType if GGML_QUANT_SIZES[kind][0] > 1]
READ = [name for name in QUANTIZED if dequantizes(GGMLQuantizationType[name])]


def write_rows(path: Path, kind: str, data: np.ndarray) -> GgufFile:
    """A file whose second block has these stored rows in its MLP and for its queries."""
    writer = gguf.GGUFWriter(path, "llama")
    for part in ("ffn_up", "attn_q"):
        stored = GGMLQuantizationType[kind]
        writer.add_tensor(f"blk.1.{part}.weight", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path)


@pytest.mark.parametrize("kind", READ)
def test_rows_of_every_type_are_those_of_the_gguf_package(kind: str, tmp_path: Path) -> None:
    data = random_rows(kind, ROWS, CHANNELS)
    file = write_rows(tmp_path / "model.gguf", kind, data)
    weights = open_weights(file, "model.gguf", "llama", HEADS, HEADS)
    expected = gguf.dequantize(data, GGMLQuantizationType[kind])
    assert expected.shape == (ROWS, CHANNELS)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(weights.read("layers.1.mlp.up_proj.weight"), expected)
    rows = slice(5, 17)
    found = weights.read("layers.1.mlp.up_proj.weight", rows)
    np.testing.assert_array_equal(found, expected[rows])
    # Pairs of neighbours become pairs half a head apart.
    heads = expected.reshape(HEADS, ROWS // HEADS // 2, 2, CHANNELS)
    turned = np.concatenate([heads[:, :, 0], heads[:, :, 1]], axis=1).reshape(ROWS, CHANNELS)
    np.testing.assert_array_equal(weights.read("layers.1.self_attn.q_proj.weight"), turned)


def test_the_types_are_those_that_files_come_in() -> None:
    assert {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ3_S", "IQ4_XS"} <= set(READ)


@pytest.mark.parametrize("kind", sorted(set(QUANTIZED) - set(READ)))
def test_a_type_that_the_package_does_not_dequantize_is_refused_by_name(
    kind: str, tmp_path: Path
) -> None:
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    data = np.zeros((ROWS, CHANNELS // values * size), np.uint8)
    file = write_rows(tmp_path / "model.gguf", kind, data)
    with pytest.raises(CheckpointError, match=rf"blk\.1\.\w+\.weight' is {kind} of shape"):
        open_weights(file, "model.gguf", "llama", HEADS, HEADS)
