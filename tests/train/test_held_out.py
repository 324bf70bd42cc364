"""A data set that is left out is measured by a head that never saw its rows."""

from dataclasses import replace

import numpy as np
import pytest

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
        pooled, labels, datasets, datasets, np.arange(400), names, ("safe", "harmful")
    )


def test_it_fares_worse_where_the_source_misleads() -> None:
    results = measure_held_out(make_rows(0), make_rows(1), LAYERS, CONFIG, seed=0)
    assert [result.dataset for result in results] == ["first", "second"]
    assert all(result.trained > 0.95 for result in results)
    assert all(result.held_out < 0.5 for result in results)
    table = held_out_markdown(results)
    worse = np.mean([result.held_out for result in results])
    assert f"Mean of the worse of the two: {worse:.3f}." in table


def test_a_data_set_without_validation_rows_only_trains() -> None:
    validation = make_rows(1)
    part = validation.where(validation.datasets == 0)
    results = measure_held_out(make_rows(0), part, LAYERS, CONFIG, seed=0)
    assert [(result.dataset, result.rows) for result in results] == [("first", part.rows)]
    again = measure_held_out(make_rows(0), replace(part), LAYERS, CONFIG, seed=0)
    assert results[0].held_out == pytest.approx(again[0].held_out)
