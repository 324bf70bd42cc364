"""Features come from the engine, equal transformers', and survive any interruption."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backbones import MAX_LENGTH
from labelled import Killed, make_rows, write_jsonl
from reference import load_reference
from siren_export.heads.mlp import Dense
from siren_export.heads.mlp_artifact import write_mlp_artifact
from siren_export.heads.selected import LayerSelection, MeanPooling
from siren_runtime.errors import InputError
from siren_runtime.text.rules import join
from siren_train.data.rows import Columns
from siren_train.store.store import FeatureStore

POOLINGS: tuple[MeanPooling, ...] = ("residual_mean", "mlp_mean")


@pytest.mark.parametrize("backbone", ["bert", "qwen3"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_features_are_those_of_transformers(
    extract_rows: Callable[..., FeatureStore],
    tmp_path: Path,
    backbone_folder: Callable[[str], Path],
    backbone: str,
    pooling: MeanPooling,
) -> None:
    store = extract_rows(tmp_path / "store", backbone, poolings=[pooling])
    layers, channels = store.manifest.layers, store.manifest.channels
    write_mlp_artifact(
        tmp_path / "everything",
        model_id=str(backbone_folder(backbone)),
        model_revision=None,
        pooling=pooling,
        layers=[LayerSelection(layer, np.arange(channels), 1.0) for layer in range(layers)],
        dense=[Dense(np.zeros((2, layers * channels)), np.zeros(2))],
        max_length=MAX_LENGTH,
        threshold=0.5,
    )
    reference = load_reference(tmp_path / "everything")
    rows = [row for row in make_rows(60) if row["split"] == "test"]
    reference.score_batch([join(row["prompt"], row["response"]) for row in rows])
    found = store.features("test", pooling)
    expected = reference.features.numpy().reshape(found.pooled.shape)
    np.testing.assert_allclose(found.pooled, expected, rtol=1e-4, atol=1e-5)
    assert found.labels.tolist() == [row["label"] for row in rows]


def test_an_interrupted_extraction_ends_as_an_undisturbed_one(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    whole = extract_rows(tmp_path / "whole")
    for stop in range(1, 8):
        folder = tmp_path / f"stopped-{stop}"
        calls: list[int] = []

        def kill(stage: str, done: int, total: int, *, share: float, stop: int = stop) -> None:
            calls.append(done)  # noqa: B023
            if len(calls) > stop:  # noqa: B023
                raise Killed

        with pytest.raises(Killed):
            extract_rows(folder, progress=kill)
        with pytest.raises(InputError, match="run the same siren extract again"):
            FeatureStore.open(folder)
        resumed: list[int] = []
        store = extract_rows(folder, progress=lambda _, done, *rest, **share: resumed.append(done))  # noqa: B023
        assert resumed[0] == calls[-1]  # nothing is done twice
        for split in whole.manifest.splits:
            np.testing.assert_array_equal(
                store.array(split, "residual_mean"), whole.array(split, "residual_mean")
            )


def test_an_extraction_goes_on_in_chunks_of_another_size(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    def kill(stage: str, done: int, total: int, *, share: float) -> None:
        if done == 16:
            raise Killed

    whole = extract_rows(tmp_path / "whole")
    with pytest.raises(Killed):
        extract_rows(tmp_path / "stopped", progress=kill)
    store = extract_rows(tmp_path / "stopped", chunk_rows=7)
    for split in whole.manifest.splits:
        np.testing.assert_allclose(
            store.array(split, "residual_mean"), whole.array(split, "residual_mean"), atol=1e-6
        )


def test_an_interruption_while_the_store_is_laid_out_is_survived(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    whole = extract_rows(tmp_path / "store")
    folder = tmp_path / "half"
    shutil.copytree(whole.folder, folder)
    (folder / "store.json").unlink()
    (folder / "progress.json").unlink()
    (folder / "train.residual_mean.npy").write_bytes(b"half")
    store = extract_rows(folder)
    np.testing.assert_array_equal(
        store.array("train", "residual_mean"), whole.array("train", "residual_mean")
    )


def test_the_first_layers_alone_are_those_of_all(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    every, first = extract_rows(tmp_path / "every"), extract_rows(tmp_path / "first", max_layer=1)
    assert first.manifest.layers == 1 < every.manifest.layers
    for split in every.manifest.splits:
        found, expected = (s.array(split, "residual_mean") for s in (first, every))
        np.testing.assert_allclose(found, expected[:, :1], atol=1e-5)


def test_float16_halves_the_store(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    single, half = (
        extract_rows(tmp_path / "single"),
        extract_rows(tmp_path / "half", dtype="float16"),
    )
    values = half.array("train", "residual_mean")
    assert values.dtype == np.float16
    np.testing.assert_allclose(values, single.array("train", "residual_mean"), rtol=2e-3, atol=1e-3)


def test_both_poolings_stand_side_by_side(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    store = extract_rows(tmp_path / "store", poolings=POOLINGS)
    residual, mlp = (store.features("train", pooling) for pooling in POOLINGS)
    assert residual.pooled.shape == mlp.pooled.shape
    assert not np.allclose(residual.pooled, mlp.pooled)


def test_a_store_of_other_settings_is_not_overwritten(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    extract_rows(tmp_path / "store")
    with pytest.raises(InputError, match=r"dtype is 'float32', asked for 'float16'"):
        extract_rows(tmp_path / "store", dtype="float16")


def test_a_store_made_anew_has_nothing_of_the_old(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    whole = extract_rows(tmp_path / "whole", max_length=8)
    extract_rows(tmp_path / "store")
    (tmp_path / "store" / "store.json").unlink()
    store = extract_rows(tmp_path / "store", max_length=8)
    np.testing.assert_array_equal(
        store.array("train", "residual_mean"), whole.array("train", "residual_mean")
    )


def test_changed_data_is_not_mixed_with_old_features(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    extract_rows(tmp_path / "store")
    write_jsonl(tmp_path / "data.jsonl", make_rows(60, seed=1))
    with pytest.raises(InputError, match="sources"):
        extract_rows(tmp_path / "store")


def test_two_extractions_at_once_do_not_share_a_folder(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    def again(stage: str, done: int, total: int, *, share: float) -> None:
        with pytest.raises(InputError, match="store: another siren extract is at work here"):
            extract_rows(tmp_path / "store")

    extract_rows(tmp_path / "store", progress=again)
    assert extract_rows(tmp_path / "store").manifest.rows == 60


def test_other_columns_of_a_file_are_other_rows(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    extract_rows(tmp_path / "store")
    with pytest.raises(InputError, match="rows_sha256 is"):
        extract_rows(tmp_path / "store", columns=Columns(text=("prompt",)))


def test_another_backbone_at_the_same_path_is_another_store(
    extract_rows: Callable[..., FeatureStore],
    tmp_path: Path,
    backbone_folder: Callable[[str], Path],
) -> None:
    backbone = tmp_path / "backbone"
    shutil.copytree(backbone_folder("bert"), backbone)
    extract_rows(tmp_path / "store", source=backbone)
    weights = load_file(backbone / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, backbone / "model.safetensors")
    with pytest.raises(InputError, match="backbone_sha256 is"):
        extract_rows(tmp_path / "store", source=backbone)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "not a feature store"),
        (lambda f: (f / "store.json").write_text("{"), "not a valid store"),
        (
            lambda f: (f / "store.json").write_text('{"format_version": 2}'),
            "format version 2, this release reads 4",
        ),
        (lambda f: (f / "progress.json").unlink(), "has 0 of 60 rows"),
        (lambda f: (f / "progress.json").write_text("{"), r"progress\.json: not a valid record"),
        (lambda f: (f / "train.labels.npy").unlink(), r"train\.labels\.npy: not readable"),
        (lambda f: (f / "train.labels.npy").write_bytes(b""), r"labels\.npy: not readable"),
        (lambda f: np.save(f / "train.labels.npy", [0]), r"labels\.npy: is int64 \(1,\)"),
        (lambda f: (f / "train.residual_mean.npy").write_bytes(b"x"), r"mean\.npy: not readable"),
    ],
)
def test_a_damaged_store_is_named(
    extract_rows: Callable[..., FeatureStore],
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    extract_rows(tmp_path / "store")
    damage(tmp_path / "store")
    with pytest.raises(InputError, match=message):
        FeatureStore.open(tmp_path / "store").features("train", "residual_mean")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_store_that_does_not_fit_is_refused_before_it_is_filled(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(InputError, match="bytes do not fit: No space left on device"):
            extract_rows(tmp_path / "store")
    assert not (tmp_path / "store" / "store.json").exists()
    assert extract_rows(tmp_path / "store").manifest.rows == 60
