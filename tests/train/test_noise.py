"""Heads that are trained not to mind what two engines' features of the same texts differ by."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.errors import InputError
from siren_train.commands import train as train_command
from siren_train.data.rows import Columns
from siren_train.data.sources import parse_source
from siren_train.fit import pipeline
from siren_train.fit.head import HeadConfig, head_logits, train_head
from siren_train.fit.settings import Settings
from siren_train.fit.splits import load_splits
from siren_train.store import noise
from siren_train.store.extract import extract
from siren_train.store.noise import read_noise
from siren_train.store.store import FeatureStore

SETTINGS = Settings(trials=1, members=1, strengths=(0.1,), shares=(0.9,), hidden=(16,))


@pytest.fixture(scope="module")
def beside(
    store: FeatureStore,
    backbone_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> FeatureStore:
    """One of the shared store's two data sets, in int8."""
    source = backbone_folder("bert")
    return extract(
        [parse_source(str(store.folder.parent / "first.jsonl"))],
        Columns(classes=("safe", "harmful")),
        load_checkpoint(str(source)),
        tmp_path_factory.mktemp("beside") / "store",
        precision="int8",
        model_id=str(source),
        max_length=48,
        threads=1,
    )


def changed(store: FeatureStore, folder: Path, **fields: Any) -> FeatureStore:
    """A copy of a store that says otherwise what it is."""
    shutil.copytree(store.folder, folder)
    manifest = json.loads((folder / "store.json").read_bytes())
    (folder / "store.json").write_text(json.dumps({**manifest, **fields}))
    return FeatureStore.open(folder)


def test_noise_is_what_engines_differ_by_on_the_same_text(
    store: FeatureStore, beside: FeatureStore
) -> None:
    found = read_noise(store, beside, "residual_mean")
    places = {digest: row for row, digest in enumerate(beside.texts("train"))}
    pairs = [(row, places[d]) for row, d in enumerate(store.texts("train")) if d in places]
    own, theirs = (np.asarray(s.array("train", "residual_mean")) for s in (store, beside))
    assert 0 < len(pairs) < store.manifest.splits["train"]
    assert len(found) == len(pairs)
    for difference in (theirs[b] - own[a] for a, b in pairs):
        assert np.abs(found - difference).max(axis=(1, 2)).min() == 0
    assert np.abs(found).max() > 1e-4


def test_of_many_shared_texts_some_are_taken_all_over_the_store(
    store: FeatureStore, beside: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = read_noise(store, beside, "residual_mean")
    monkeypatch.setattr(noise, "_ROWS", len(everything) // 2)
    np.testing.assert_array_equal(
        read_noise(store, beside, "residual_mean"),
        everything[:: -(-len(everything) // noise._ROWS)],
    )


def test_a_head_leans_on_what_does_not_move() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    features = rng.normal(size=(600, 4)).astype(np.float32)
    features[:, :2] += 3 * labels[:, None]  # both tell the classes; the first is noisy
    moves = np.zeros((50, 4), np.float32)
    moves[:, 0] = rng.normal(size=50)
    config = HeadConfig(hidden=(16,), epochs=20, batch_size=32, learning_rate=0.01)
    ones, gains = np.ones(600, np.float32), np.ones(4, np.float32)

    def moved(given: np.ndarray | None) -> float:
        head = train_head(features, labels, ones, gains, 2, config, noise=given, seed=0)
        logits = head_logits(head, features)
        assert (logits.argmax(axis=1) == labels).mean() > 0.9
        step = np.eye(4, dtype=np.float32)[0]
        move = head_logits(head, features + step) - logits
        return float(np.abs(move[:, 1] - move[:, 0]).mean() / (logits[:, 1] - logits[:, 0]).std())

    assert moved(moves) < 0.5 * moved(None)


def test_labels_that_do_not_exclude_one_another_mind_noise_less_too() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (400, 3))
    spread = rng.normal(0, 0.3, (400, 6))
    features = (np.concatenate([labels, labels], axis=1) + spread).astype(np.float32)
    moves = np.zeros((50, 6), np.float32)
    moves[:, :3] = rng.normal(size=(50, 3))
    config = HeadConfig(hidden=(16,), epochs=20, batch_size=32, learning_rate=0.01)

    def moved(given: np.ndarray | None) -> float:
        weights, gains = np.ones(400, np.float32), np.ones(6, np.float32)
        head = train_head(features, labels, weights, gains, 3, config, noise=given, seed=0)
        logits = head_logits(head, features)
        return float(np.abs(head_logits(head, features + moves[:1]) - logits).mean() / logits.std())

    assert moved(moves) < 0.7 * moved(None)


def test_a_run_says_whose_noise_it_had_and_keeps_to_it(
    store: FeatureStore, beside: FeatureStore, tmp_path: Path
) -> None:
    report = pipeline.train([store], tmp_path, tmp_path / ".work", SETTINGS, noise=beside)
    assert report.noise == "int8"
    assert pipeline.train([store], tmp_path, tmp_path / ".work", SETTINGS, noise=beside) == report
    with pytest.raises(InputError, match="work of a run with other settings, features"):
        pipeline.train([store], tmp_path, tmp_path / ".work", SETTINGS)


def test_heads_without_a_source_and_exits_are_trained_with_it_too(
    store: FeatureStore, beside: FeatureStore, tmp_path: Path
) -> None:
    arguments = (store.folder, "-o", tmp_path, "--noise", beside.folder, "--exits", 1, "--held-out")
    options = ("--trials", 1, "--members", 1, "--share", 0.9, "--hidden", 16)
    given = [str(argument) for argument in (*arguments, *options)]
    result = CliRunner().invoke(train_command.app, given)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "held-out.md").is_file()
    for folder in (tmp_path, tmp_path / "exits" / "1"):
        assert json.loads((folder / "training.json").read_text())["noise"] == "int8"
        assert "whatever features in int8 differ by" in (folder / "training.md").read_text()
    rows, _ = load_splits([store], msgspec.structs.replace(SETTINGS, max_layer=1), beside)
    assert rows.noise is not None
    assert rows.noise.shape[1] == 1
    assert replace(rows).where(~rows.is_copy).noise is rows.noise


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "fp32"}, "pooled in fp32, as .* extract it with another --precision"),
        ({"backbone_sha256": "0" * 64}, "another backbone .* backbone_sha256 is"),
        ({"max_length": 64}, "another backbone .* max_length is 64, not 48"),
    ],
)
def test_stores_whose_differences_are_not_the_engines_alone_are_refused(
    store: FeatureStore,
    beside: FeatureStore,
    tmp_path: Path,
    fields: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        read_noise(store, changed(beside, tmp_path / "other", **fields), "residual_mean")


def test_a_store_that_shares_no_text_or_lacks_the_pooling_is_refused(
    store: FeatureStore, beside: FeatureStore, tmp_path: Path
) -> None:
    other = changed(beside, tmp_path / "other")
    for split in other.manifest.splits:
        path = other.folder / f"{split}.texts.npy"
        np.save(path, np.load(path) + 1)
    with pytest.raises(InputError, match=r"no train text of .* is in it; extract some of the same"):
        read_noise(store, other, "residual_mean")
    with pytest.raises(InputError, match="has no mlp_mean; extract it with --pooling mlp_mean"):
        read_noise(store, beside, "mlp_mean")


def test_a_store_of_too_few_layers_is_refused(
    store: FeatureStore, beside: FeatureStore, tmp_path: Path
) -> None:
    shallow = changed(beside, tmp_path / "shallow", layers=1)
    for split in beside.manifest.splits:
        path = shallow.folder / f"{split}.residual_mean.npy"
        np.save(path, np.load(path)[:, :1])
    with pytest.raises(InputError, match=r"has 1 layers, and the head reads 2; .*--max-layer 2"):
        load_splits([store], msgspec.structs.replace(SETTINGS, max_layer=2), shallow)


def test_heads_that_would_leave_it_unread_refuse_it(store: FeatureStore, tmp_path: Path) -> None:
    arguments = [store.folder, "-o", tmp_path / "h", "--head", "polynomial", "--noise", "x"]
    result = CliRunner().invoke(train_command.app, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert "--noise" in result.output
