"""Polynomial head artifacts in which anything is off are refused by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polynomials import make_polynomial
from siren_export.heads.registry import load_artifact
from siren_runtime.errors import ArtifactError


@pytest.fixture
def folder(tmp_path):
    """The files of a head of three orders, of rank 2, on 18 neurons."""
    (tmp_path / "config.json").write_text('{"hidden_size": 32}')
    return make_polynomial(tmp_path / "head", tmp_path, orders=3, rank=2)


def test_a_whole_one_is_read(folder):
    head = load_artifact(folder).head
    assert (head.orders, head.spec.classes, head.spec.orders) == (3, 3, 3)
    assert [term.directions.shape for term in head.terms] == [(2, 18)] * 2


def shape(**fields):
    return lambda c, t: c["polynomial"].update(fields)


def tensor(name, value):
    return lambda c, t: t.update({name: np.float32(value)})


FAULTS = {
    "no-shape": (lambda c, t: c.pop("polynomial"), "polynomial"),
    "orders-zero": (shape(orders=0), "polynomial.orders"),
    "orders-many": (shape(orders=17), "polynomial.orders"),
    "orders-more-than-tensors": (shape(orders=4), "missing 'order.4.directions'"),
    "orders-fewer-than-tensors": (shape(orders=2), "unexpected 'order.3.directions'"),
    "orders-a-string": (shape(orders="3"), "polynomial.orders"),
    "rank-zero": (shape(rank=0), "polynomial.rank"),
    "rank-other": (shape(rank=3), r"'order.2.factors' has shape \(2,\)"),
    "input-dim-other": (shape(input_dim=17), "input_dim is 17"),
    "another-key": (shape(dropout=0.1), "unknown field `dropout`"),
    "no-mean": (lambda c, t: t.pop("mean"), "missing 'mean'"),
    "no-bias": (lambda c, t: t.pop("bias"), "missing 'bias'"),
    "no-factors": (lambda c, t: t.pop("order.2.factors"), "missing 'order.2.factors'"),
    "another-tensor": (tensor("extra", [1]), "unexpected 'extra'"),
    "mean-short": (tensor("mean", [1, 2]), r"'mean' has shape \(2,\)"),
    "bias-of-two": (tensor("bias", [1, 2]), r"'bias' has shape \(2,\)"),
    "scale-zero": (tensor("scale", np.zeros(18)), "18 values that are not above 0"),
    "scale-negative": (tensor("scale", -np.ones(18)), "not above 0"),
    "weight-nan": (tensor("weight", np.full(18, np.nan)), "'weight' has 18 values"),
    "directions-inf": (
        tensor("order.3.directions", np.full((2, 18), np.inf)),
        "'order.3.directions' has 36 values",
    ),
    "weight-of-integers": (
        lambda c, t: t.update(weight=np.ones(18, np.int32)),
        "expected a float dtype",
    ),
    "task-of-content": (lambda c, t: c.update(task="content"), "mlp"),
    "labels": (
        lambda c, t: c["inference"].update(labels={"a": {"threshold": 0.5}}),
        "no labels of their own|none, since",
    ),
    "channel-twice": (
        lambda c, t: c["siren_module"]["selected_neurons_dict"].update(layer0_residual_mean=[1, 1]),
        "names channel 1 more than once",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_contradicts_itself_is_refused_by_name(folder, fault):
    change, match = FAULTS[fault]
    config = json.loads((folder / "siren_config.json").read_text())
    tensors = load_file(folder / "siren.safetensors")
    change(config, tensors)
    (folder / "siren_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "siren.safetensors")
    with pytest.raises(ArtifactError, match=match) as told:
        load_artifact(folder)
    assert str(folder) in str(told.value)
