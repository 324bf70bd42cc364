"""What an extraction takes of an earlier one: its rows, and the engine that pooled them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelled import Killed
from siren_export import export
from siren_runtime import Guard
from siren_runtime.bundle.files import sha256_of
from siren_runtime.errors import InputError
from siren_train.store import extract as extract_module
from siren_train.store.store import FeatureStore, extractor_folder
from tiny_bundle import edit_manifest

POOLINGS = ("residual_mean", "mlp_mean")


def test_rows_that_were_pooled_before_are_taken_and_the_others_pooled(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, whole = extract_rows(tmp_path / "old", splits=["train"]), extract_rows(tmp_path / "whole")
    pooled = []
    score_batch = Guard.score_batch

    def counted(self: Guard, texts: Any, **options: Any) -> Any:
        pooled.extend(texts)
        return score_batch(self, texts, **options)

    monkeypatch.setattr(Guard, "score_batch", counted)
    grown = extract_rows(tmp_path / "grown", reuse=old)
    assert len(pooled) == whole.manifest.rows - whole.manifest.splits["train"]
    for split in whole.manifest.splits:
        expected = whole.array(split, "residual_mean")
        np.testing.assert_allclose(grown.array(split, "residual_mean"), expected, atol=1e-5)
    np.testing.assert_array_equal(
        grown.array("train", "residual_mean"), old.array("train", "residual_mean")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision is 'fp32', asked for 'int8'"),
        ({"max_length": 24}, "max_length"),
        ({"dtype": "float16"}, "dtype"),
        ({"backbone": "qwen3"}, "backbone_sha256"),
        ({"poolings": ["mlp_mean"]}, "has no mlp_mean"),
    ],
)
def test_features_of_another_engine_are_not_reused(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    old = extract_rows(tmp_path / "old")
    with pytest.raises(InputError, match=rf"old: cannot be reused: .*{message}"):
        extract_rows(tmp_path / "new", reuse=old, **options)
    assert not (tmp_path / "new" / "store.json").exists()


def _digests(folder: Path) -> dict[str, str]:
    return {str(path): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_two_engines_of_a_precision_are_not_mixed(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(stage: str, done: int, total: int, *, share: float) -> None:
        if done == 16:
            raise Killed

    old = extract_rows(tmp_path / "old", precision="int8")
    assert extract_rows(tmp_path / "grown", precision="int8", reuse=old).manifest == old.manifest
    with pytest.raises(Killed):
        extract_rows(tmp_path / "stopped", precision="int8", progress=kill)
    _damage(extractor_folder(tmp_path / "old", "residual_mean") / "weights.bin")
    shutil.rmtree(extractor_folder(tmp_path / "stopped", "residual_mean"))
    before = _digests(tmp_path)
    monkeypatch.setattr(export, "EXAMPLE_TEXTS", ("other texts", "to fit weights by"))
    for folder, reuse in (("old", None), ("stopped", None), ("new", old)):
        named = "old" if reuse else folder
        with pytest.raises(InputError, match=rf"{named}: its residual_mean is of another engine"):
            extract_rows(tmp_path / folder, precision="int8", reuse=reuse)
    assert not (tmp_path / "new" / "store.json").exists()
    assert _digests(tmp_path) == before | _digests(tmp_path / "new")
    other = extract_rows(tmp_path / "new", precision="int8")
    found, expected = (store.array("train", "residual_mean") for store in (other, old))
    assert not np.array_equal(found, expected)


def test_an_extraction_goes_on_with_the_extractors_that_lie_in_its_folder(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(stage: str, done: int, total: int, *, share: float) -> None:
        if done == 16:
            raise Killed

    options: dict[str, Any] = {"precision": "int8", "poolings": POOLINGS}
    whole = extract_rows(tmp_path / "whole", **options)
    with pytest.raises(Killed):
        extract_rows(tmp_path / "stopped", progress=kill, **options)
    extractors = [extractor_folder(tmp_path / "stopped", pooling) for pooling in POOLINGS]
    before = [*map(_digests, extractors)]
    monkeypatch.setattr(export, "EXAMPLE_TEXTS", ("other texts", "to fit weights by"))
    store = extract_rows(tmp_path / "stopped", **options)
    assert store.manifest == whole.manifest
    assert [*map(_digests, extractors)] == before
    for pooling in POOLINGS:
        np.testing.assert_array_equal(store.array("train", pooling), whole.array("train", pooling))


def _shorten(extractor: Path) -> None:
    edit_manifest(extractor, lambda manifest: manifest["text"].update(max_length=8))


@pytest.mark.parametrize("spoil", [lambda e: _damage(e / "weights.bin"), _shorten])
def test_an_extractor_that_is_not_what_pooled_is_made_anew(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    def kill(stage: str, done: int, total: int, *, share: float) -> None:
        if done == 16:
            raise Killed

    whole = extract_rows(tmp_path / "whole")
    with pytest.raises(Killed):
        extract_rows(tmp_path / "stopped", progress=kill)
    extractor = extractor_folder(tmp_path / "stopped", "residual_mean")
    before = sha256_of(extractor / "weights.bin")
    spoil(extractor)
    store = extract_rows(tmp_path / "stopped")
    assert sha256_of(extractor / "weights.bin") == before
    np.testing.assert_array_equal(
        store.array("train", "residual_mean"), whole.array("train", "residual_mean")
    )


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_store_that_names_no_engine_is_read_and_neither_reused_nor_gone_on_with(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = extract_rows(tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "store.json").read_text())
    del manifest["engines"]  # as an earlier release wrote it
    (tmp_path / "old" / "store.json").write_text(json.dumps(manifest))
    old = FeatureStore.open(tmp_path / "old")
    assert old.features("train", "residual_mean").rows == made.manifest.splits["train"]
    monkeypatch.delattr(extract_module, "build_extractor")  # it is said before one is made
    for options in ({}, {"reuse": old}):
        with pytest.raises(InputError, match="old: its residual_mean does not say whether it is"):
            extract_rows(tmp_path / ("new" if options else "old"), **options)


def test_a_store_without_digests_of_its_texts_is_not_reused(
    extract_rows: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    old = extract_rows(tmp_path / "old")
    (tmp_path / "old" / "train.texts.npy").unlink()
    with pytest.raises(InputError, match=r"train\.texts\.npy: not readable"):
        extract_rows(tmp_path / "new", reuse=old)
