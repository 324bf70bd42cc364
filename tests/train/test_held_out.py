"""A data set that is left out is measured by a head that never saw its rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from labelled import make_rows as make_labelled
from labelled import write_jsonl
from siren_command import siren
from siren_export.heads.selected import LayerSelection
from siren_train.fit.head import HeadConfig
from siren_train.fit.held_out import held_out_markdown, measure_held_out
from siren_train.store.features import FeatureSet

LAYERS = [LayerSelection(0, np.arange(4), 1.0)]
CONFIG = HeadConfig(
    hidden=(16, 8), dropout=0.0, input_dropout=0.0, epochs=40, batch_size=32, learning_rate=5e-3
)


def make_rows(seed: int) -> FeatureSet:
    """Two data sets; what channel 0 says of harm in the first, channel 1 says in the second, and
    there channel 0 says the opposite.
    """
    rng = np.random.default_rng(seed)
    labels, datasets = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
    pooled = rng.normal(0, 1, (400, 1, 4)).astype(np.float32)
    sign = 2 * labels - 1
    pooled[:, 0, 0] += np.where(datasets == 0, 3, -3) * sign
    pooled[:, 0, 1] += np.where(datasets == 0, 0, 6) * sign
    pooled[:, 0, 2] += 4 * datasets
    names = ("first", "second")
    return FeatureSet(
        pooled,
        labels,
        datasets,
        datasets,
        np.arange(400),
        names,
        ("safe", "harmful"),
        collection_names=names,
    )


def test_it_fares_worse_where_the_source_misleads() -> None:
    results = measure_held_out(make_rows(0), make_rows(1), LAYERS, CONFIG, seed=0)
    assert [result.dataset for result in results] == ["first", "second"]
    assert all(result.trained > 0.95 for result in results)
    assert all(result.without_dataset < 0.5 for result in results)
    # Each data set is one source here.
    assert all(result.without_source == result.without_dataset for result in results)
    table = held_out_markdown(results)
    worse = np.mean([result.worse for result in results])
    assert f"source left out: {worse:.3f}." in table


def test_a_source_of_several_data_sets_is_left_out_of_all_of_them() -> None:
    """The rows that mislead are half of each data set, of a source that both have."""
    train, validation = make_rows(0), make_rows(1)
    names = ("first/plain", "first/shared", "second/shared", "second/plain")

    def mixed(rows: FeatureSet) -> FeatureSet:
        half = np.arange(rows.rows) % 2
        # Rows that were of the second data set are all of the shared source.
        collections = np.where(rows.datasets == 0, 3 * half, 1 + half)
        return replace(rows, datasets=half, collections=collections, collection_names=names)

    results = measure_held_out(mixed(train), mixed(validation), LAYERS, CONFIG, seed=0, workers=2)
    for result in results:
        assert result.sources == 2
        assert result.trained > 0.95
        assert result.without_source < 0.5  # though rows of the other data set resemble it
        assert result.without_dataset > 0.95  # the other one has both sources


def test_one_data_set_alone_is_refused_before_anything_is_fitted(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    data = write_jsonl(tmp_path / "only.jsonl", make_labelled(60))
    extract = ("extract", backbone_folder("bert"), data, "-o", tmp_path / "store")
    assert siren(*extract, "--max-length", 48, "--threads", 1).exit_code == 0
    result = siren("train", tmp_path / "store", "-o", tmp_path / "head", "--held-out")
    assert result.exit_code == 1
    assert "all train rows are of one data set or source" in result.stderr
    assert not (tmp_path / "head").exists()


def test_a_data_set_without_validation_rows_only_trains() -> None:
    validation = make_rows(1)
    part = validation.where(validation.datasets == 0)
    results = measure_held_out(make_rows(0), part, LAYERS, CONFIG, seed=0)
    assert [(result.dataset, result.rows) for result in results] == [("first", part.rows)]
    again = measure_held_out(make_rows(0), replace(part), LAYERS, CONFIG, seed=0, workers=2)
    assert results == again
