"""Forecast head artifacts in which anything is off are refused by name."""

import copy
import hashlib
import json

import numpy as np
import pytest

from siren_export.heads.registry import load_artifact
from siren_runtime.bundle.heads import OPENAI_KEYS
from siren_runtime.errors import ArtifactError
from valid_artifact import CONFIG, write


@pytest.fixture
def config():
    """The config of a linear forecast head of five neurons, which nothing is wrong with."""
    config = copy.deepcopy(CONFIG) | {"task": "forecast"}
    config["mlp"] = {"input_dim": 5, "layer_dims": [], "dropout_rates": [], "num_classes": 1}
    return config


@pytest.fixture
def tensors():
    return {
        "network.0.weight": np.ones((1, 5), np.float32),
        "network.0.bias": np.zeros(1, np.float32),
    }


@pytest.mark.parametrize("hidden", [[], [4]])
def test_a_whole_one_is_read(tmp_path, config, tensors, hidden):
    if hidden:
        config["mlp"] |= {"layer_dims": hidden, "dropout_rates": [0]}
        tensors = {
            "network.0.weight": np.ones((4, 5), np.float32),
            "network.0.bias": np.zeros(4, np.float32),
            "network.2.weight": np.ones((1, 4), np.float32),
            "network.2.bias": np.zeros(1, np.float32),
        }
    spec = load_artifact(write(tmp_path, config, tensors)).head.spec
    assert (spec.kind, spec.activation, spec.classes) == ("forecast", "logistic", 1)
    assert spec.categories == ()


def mlp(**fields):
    return lambda c, t: c["mlp"].update(fields)


def tensor(name, value):
    return lambda c, t: t.update({name: np.float32(value)})


FAULTS = {
    "no-count": (lambda c, t: c["mlp"].pop("num_classes"), "one logit .* found 2"),
    "two-classes": (mlp(num_classes=2), "one logit .* found 2"),
    "no-class": (mlp(num_classes=0), "mlp.num_classes"),
    "count-a-string": (mlp(num_classes="1"), "mlp.num_classes"),
    "a-name": (mlp(class_names=["harm"]), r"no mlp.class_names, found \['harm'\]"),
    "names-of-classes": (mlp(class_names=["safe", "harmful"]), "no mlp.class_names"),
    "labels": (
        lambda c, t: c["inference"].update(labels={"harm": {"threshold": 0.5}}),
        "none, since the head has no labels",
    ),
    "openai": (
        lambda c, t: c.update(openai_categories={key: [] for key in OPENAI_KEYS}),
        "openai_categories is for heads of labels",
    ),
    "hidden-without-tensors": (mlp(layer_dims=[4], dropout_rates=[0]), "missing 'network.2.bias'"),
    "rates-without-layers": (mlp(dropout_rates=[0.1]), "mlp.dropout_rates 1"),
    "input-dim-other": (mlp(input_dim=6), "input_dim is 6"),
    "no-mlp": (lambda c, t: c.pop("mlp"), "mlp"),
    "logits-of-two": (
        tensor("network.0.weight", np.ones((2, 5))),
        r"'network.0.weight' has shape \(2, 5\)",
    ),
    "weight-a-row": (tensor("network.0.weight", np.ones(5)), r"has shape \(5,\)"),
    "weight-transposed": (tensor("network.0.weight", np.ones((5, 1))), r"has shape \(5, 1\)"),
    "weight-nan": (tensor("network.0.weight", np.full((1, 5), np.nan)), "has 5 values"),
    "bias-infinite": (tensor("network.0.bias", [np.inf]), "'network.0.bias' has 1 values"),
    "no-bias": (lambda c, t: t.pop("network.0.bias"), "missing 'network.0.bias'"),
    "another-tensor": (tensor("mean", np.ones(5)), "unexpected 'mean'"),
    "weight-of-integers": (
        lambda c, t: t.update({"network.0.weight": np.ones((1, 5), np.int32)}),
        "expected a float dtype",
    ),
    "task-of-content": (lambda c, t: c.update(task="content"), "mlp.num_classes is 1"),
    "task-of-labels": (lambda c, t: c.update(task="categories"), "needs mlp.num_classes and"),
    "threshold-above-one": (
        lambda c, t: c["inference"].update(default_threshold=1.5),
        "default_threshold",
    ),
    "last-token": (
        lambda c, t: c["siren_module"].update(pooling_type="last"),
        "pooling_type is 'last'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_contradicts_itself_is_refused_by_name(tmp_path, config, tensors, fault):
    change, match = FAULTS[fault]
    change(config, tensors)
    with pytest.raises(ArtifactError, match=match) as told:
        load_artifact(write(tmp_path, config, tensors))
    assert str(tmp_path) in str(told.value)


@pytest.mark.parametrize("smoothing", [0, -1, 2.5, "8", None, 10**6])
def test_a_decision_smooths_over_a_whole_number_of_tokens(tmp_path, config, tensors, smoothing):
    write(tmp_path, config, tensors)
    digest = hashlib.sha256((tmp_path / "siren.safetensors").read_bytes()).hexdigest()
    decision = {"threshold": 0.5, "smoothing": smoothing}
    told = {"weights_sha256": digest, "decision": decision}
    (tmp_path / "decision.json").write_text(json.dumps(told))
    with pytest.raises(ArtifactError, match=r"decision\.smoothing"):
        load_artifact(tmp_path)
