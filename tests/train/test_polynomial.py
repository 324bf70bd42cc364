"""Polynomial heads trained order by order: lower orders stay, and nested ones do not get worse."""

import warnings

import msgspec
import numpy as np
import pytest

from polynomials import plain_orders
from siren_export.heads.registry import load_artifact
from siren_runtime.errors import InputError
from siren_runtime.generation.manifest import TrainedOn
from siren_train.fit import logistic, polynomial_pipeline
from siren_train.fit.selection import gather
from siren_train.fit.settings import Settings
from siren_train.fit.splits import load_splits
from siren_train.measure.metrics import macro_f1_by_dataset
from siren_train.store.store import FeatureStore

SETTINGS = Settings(head="polynomial", strengths=(0.03,), shares=(0.6,))


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("polynomial")
    options = {"layer": None, "rank": 4}
    reports = {
        orders: polynomial_pipeline.train(
            [store], folder / str(orders), folder / "work", SETTINGS, orders=orders, **options
        )
        for orders in (1, 3)
    }
    return folder, reports


def test_lower_orders_are_the_same_whatever_comes_after_them(trained):
    folder, _ = trained
    low, high = (load_artifact(folder / name).head for name in ("1", "3"))
    np.testing.assert_array_equal(low.weight, high.weight)
    assert (low.bias, low.orders, high.orders) == (high.bias, 1, 3)


def test_an_order_more_is_never_worse_on_the_rows_it_was_chosen_by(store, trained):
    folder, reports = trained
    scores = [report.validation.mean for report in reports[3]]
    assert scores == sorted(scores)
    assert scores[0] > 0.6
    _, validation = load_splits([store], SETTINGS)
    head = load_artifact(folder / "3").head
    features = gather(validation.pooled, head.layers)
    logits = np.array([plain_orders(folder / "3", row) for row in features.astype(np.float64)])
    for order, report in enumerate(reports[3]):
        found = macro_f1_by_dataset(
            validation.labels,
            (logits[:, order] >= 0).astype(np.int64),
            validation.datasets,
            validation.names,
        )
        assert found.mean == pytest.approx(report.validation.mean, abs=0.02)


def test_the_report_has_every_order_and_an_mlp_beside(trained):
    text = (trained[0] / "3" / "training.md").read_text()
    assert all(f"| {order} | " in text for order in (1, 2, 3))
    parameters, cost = (cell.strip() for cell in text.split("| MLP |")[1].split("|")[:2])
    assert int(cost.replace(",", "")) < int(parameters.replace(",", ""))
    assert "| multiply-adds |" in text


def test_a_regression_that_stops_early_is_a_candidate_and_no_warning(monkeypatch):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(60, 8)).astype(np.float32)
    labels = (inputs @ random.normal(size=8) > 0).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {}
        for steps in (1, 1000):
            monkeypatch.setattr(logistic, "_MOST_STEPS", steps)
            weight, bias = logistic.fit_logistic(inputs, labels, np.ones(60), 1.0)
            found[steps] = np.abs(inputs @ weight + bias).mean()
    assert found[1] < found[1000]
    assert weight.dtype == np.float64


def test_one_layer_may_be_read_and_must_be_there(store, trained, tmp_path):
    work = trained[0] / "work"
    options = {"orders": 1, "rank": 1}
    polynomial_pipeline.train([store], tmp_path / "one", work, SETTINGS, layer=1, **options)
    assert [one.layer for one in load_artifact(tmp_path / "one").head.layers] == [1]
    with pytest.raises(InputError, match="has layers 0 to 3"):
        polynomial_pipeline.train([store], tmp_path / "x", work, SETTINGS, layer=4, **options)


def test_the_artifact_names_the_generator_whose_features_it_was_trained_on(store, tmp_path):
    generator = TrainedOn(engine="0" * 64, text="chat")
    manifest = msgspec.structs.replace(store.manifest, generator=generator)
    polynomial_pipeline.train(
        [FeatureStore(store.folder, manifest)], tmp_path / "head", tmp_path / "work", SETTINGS,
        layer=1, orders=1, rank=1,
    )  # fmt: skip
    assert load_artifact(tmp_path / "head").trained_on == generator


def test_more_than_two_classes_are_refused(make_store, tmp_path):
    with pytest.raises(InputError, match="two classes"):
        polynomial_pipeline.train(
            [make_store(classes=3, rows=60)], tmp_path, tmp_path / "w", SETTINGS,
            layer=None, orders=2, rank=2,
        )  # fmt: skip
