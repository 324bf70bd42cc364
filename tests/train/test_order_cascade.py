"""Bounds of a polynomial's lower orders: what they decide, cost and lose, and what drops them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from calibrated import write_calibration
from guards import load_guard
from labelled import make_rows, write_jsonl
from polynomials import make_polynomial
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime import BundleError
from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.commands.siren import app as siren
from siren_train.measure.exit_bounds import ExitScores
from siren_train.measure.order_evaluation import measure_orders, order_costs
from tiny_bundle import edit_manifest

HEAD = HeadSpec("polynomial", "residual_mean", [0], 10, 3, activation="orders", rank=4)


def run(*arguments):
    return CliRunner().invoke(siren, [str(argument) for argument in arguments])


@pytest.fixture
def labelled(tmp_path, backbone_folder):
    """A bundle of a random polynomial, and rows that its highest order judges rightly."""
    backbone, bundle = backbone_folder("bert"), tmp_path / "bundle"
    head = make_polynomial(tmp_path / "head", backbone, orders=3)
    export_bundle(load_artifact(head), load_checkpoint(backbone), bundle)
    rows = make_rows(60)
    texts = [(row["prompt"], row["response"]) for row in rows]
    scores = [result.score for result in load_guard(bundle, threads=1).score_batch(texts)]
    threshold = float(np.median(scores))
    write_calibration(bundle, threshold=threshold)
    for row, score in zip(rows, scores, strict=True):
        row |= {"label": int(score >= threshold), "split": "validation"}
    return bundle, write_jsonl(tmp_path / "data.jsonl", rows), threshold


def test_bounds_are_chosen_written_reported_and_dropped_by_a_new_threshold(labelled):
    bundle, data, threshold = labelled
    found = run("calibrate", bundle, data, "--cascade", "--loss", 10, "--threads", 1)
    assert found.exit_code == 0, found.output
    assert "order 3: the rest; decides" in found.stdout
    assert "macro-F1 by itself 1.0000" in found.stdout
    orders = load_bundle(bundle).manifest.orders
    assert (len(orders.bounds), orders.rows, orders.cutoffs) == (2, 60, [threshold])
    assert orders.cost < 1
    assert f"mean cost {orders.cost:.3f} of the head's" in found.stdout
    assert "order 1" in run("inspect", bundle).output
    write_calibration(bundle, threshold=threshold / 2)
    assert load_bundle(bundle).manifest.orders is None


def test_an_evaluation_has_each_order_and_what_its_bounds_decide(labelled, tmp_path):
    bundle, data, _ = labelled

    def evaluated(name):
        arguments = data, "--split", "validation", "--threads", 1, "-o", tmp_path / name
        found = run("evaluate", bundle, *arguments)
        assert found.exit_code == 0, found.output
        return found.stdout, json.loads((tmp_path / name / "evaluation.json").read_text())

    shown, plain = evaluated("plain")
    assert "rows it decides" not in shown
    assert plain["orders"]["bounded_macro_f1"] is None
    run("calibrate", bundle, data, "--cascade", "--loss", 10, "--threads", 1)
    shown, found = evaluated("bounded")
    orders = found["orders"]
    assert orders["costs"] == order_costs(load_bundle(bundle).manifest.head)
    assert orders["macro_f1"][-1] == found["mean_macro_f1"] == 1.0
    assert orders["auroc"][-1] == 1.0
    assert orders["macro_f1"] == plain["orders"]["macro_f1"]
    assert sum(orders["decides"]) == pytest.approx(1)
    assert orders["decides"] != plain["orders"]["decides"] == [0, 0, 1]
    assert 0.9 <= orders["bounded_macro_f1"] < 1.0
    assert (
        f"Where each row is decided so, mean macro-F1 is {orders['bounded_macro_f1']:.4f}" in shown
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda o: o["bounds"].pop(), "orders.bounds are 1"),
        (lambda o: o["bounds"][0].update(low=0.7, high=0.2), "order 1 calls texts safe up to 0.7"),
        (lambda o: o.update(cutoffs=[0.123]), "siren calibrate --cascade"),
    ],
)
def test_bounds_that_contradict_the_head_are_refused(labelled, edit, message):
    bundle, data, _ = labelled
    run("calibrate", bundle, data, "--cascade", "--loss", 10, "--threads", 1)
    edit_manifest(bundle, lambda m: edit(m["orders"]))
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_terms_cost_their_products_powers_and_sum():
    assert order_costs(HEAD) == [10, 10 + 4 * 12, 10 + 4 * 12 + 4 * 13]


def test_a_row_is_decided_by_the_first_order_that_is_sure():
    scores = ExitScores(
        whole=np.array([0.1, 0.9, 0.9, 0.4]),
        exits=np.array([[0.1, 0.1], [0.5, 0.9], [0.5, 0.5], [0.95, 0.4]]),
        harmful=np.array([False, True, True, False]),
        datasets=np.array(["a"] * 4),
        tokens=np.ones(4, np.int64),
    )
    bounds = [(0.2, 0.95), (None, 0.8)]
    reports, cascade = measure_orders(scores, bounds, HEAD, np.full(4, 0.5))
    assert [one.decides for one in reports] == [0.5, 0.25, 0.25]
    assert reports[-1].macro_f1 == 1.0
    assert cascade == pytest.approx((0.8 + 2 / 3) / 2)  # the first order errs on the last row
    assert [one.cost for one in reports] == order_costs(HEAD)


def test_what_has_no_lower_orders_is_refused(tmp_path, backbone_folder):
    backbone = backbone_folder("bert")
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(12))
    one = make_polynomial(tmp_path / "one", backbone, orders=1)
    export_bundle(load_artifact(one), load_checkpoint(backbone), tmp_path / "bundle")
    found = run("calibrate", tmp_path / "bundle", data, "--cascade")
    assert "polynomials of 2 to 8 orders, found 1" in found.stderr

    def ranked(manifest):
        manifest["heads"]["harm"]["rank"] = 3
        del manifest["graphs"]["explain.harm"]

    edit_manifest(tmp_path / "bundle", ranked)
    with pytest.raises(BundleError, match="rank is 3"):
        load_bundle(tmp_path / "bundle")
