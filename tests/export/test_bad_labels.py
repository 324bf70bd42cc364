"""Head artifacts of labels: what they may say, and that anything off is refused by name."""

import copy
import json

import numpy as np
import pytest

from siren_export.heads.registry import load_artifact
from siren_runtime.bundle.heads import OPENAI_KEYS, Decision, LabelDecision
from siren_runtime.errors import ArtifactError
from valid_artifact import CONFIG, TENSORS, write

TABLE = {key: [] for key in OPENAI_KEYS} | {"hate": ["hate"], "hate/threatening": ["hate", "arms"]}


@pytest.fixture
def config():
    """The files of a head of two labels that nothing is wrong with."""
    table = copy.deepcopy(TABLE)
    config = copy.deepcopy(CONFIG) | {"task": "categories", "openai_categories": table}
    config["mlp"] |= {"num_classes": 2, "class_names": ["hate", "arms"]}
    config["inference"]["labels"] = {
        "arms": {"threshold": 0.25},
        "hate": {"threshold": 0.75, "temperature": 2.0},
    }
    return config


def test_a_head_of_labels_is_read_with_its_thresholds_and_table(tmp_path, config):
    artifact = load_artifact(write(tmp_path, config, TENSORS))
    assert artifact.decision == Decision(
        0.5, labels=[LabelDecision("hate", 0.75, 2.0), LabelDecision("arms", 0.25)]
    )
    spec = artifact.head.spec
    assert (spec.activation, spec.classes, spec.categories) == ("sigmoid", 2, ("hate", "arms"))
    assert spec.openai == TABLE


def test_thresholds_and_table_may_be_left_out_and_one_label_is_enough(tmp_path, config):
    del config["inference"]["labels"], config["openai_categories"]
    config["mlp"] |= {"num_classes": 1, "class_names": ["hate"]}
    tensors = TENSORS | {
        "network.3.weight": np.ones((1, 4), np.float32),
        "network.3.bias": np.zeros(1, np.float32),
    }
    artifact = load_artifact(write(tmp_path, config, tensors))
    assert artifact.decision == Decision(0.5)
    assert artifact.head.spec.categories == ("hate",)


def label(**fields):
    return lambda c: c["inference"]["labels"]["hate"].update(fields)


FAULTS = {
    "no-names": (lambda c: c["mlp"].pop("class_names"), "needs mlp.num_classes and"),
    "no-count": (lambda c: c["mlp"].pop("num_classes"), "needs mlp.num_classes and"),
    "one-name-too-few": (lambda c: c["mlp"].update(class_names=["hate"]), "2 different names"),
    "names-twice": (lambda c: c["mlp"].update(class_names=["hate", "hate"]), "2 different names"),
    "name-empty": (lambda c: c["mlp"].update(class_names=["hate", ""]), "class_names has ''"),
    "name-of-blanks": (lambda c: c["mlp"].update(class_names=["hate", " "]), "class_names has ' '"),
    "name-padded": (lambda c: c["mlp"].update(class_names=["hate", "b "]), "class_names has 'b '"),
    "name-with-plus": (lambda c: c["mlp"].update(class_names=["hate", "a+b"]), "without [+]"),
    "name-with-newline": (lambda c: c["mlp"].update(class_names=["hate", "a\nb"]), "printable"),
    "name-a-number": (lambda c: c["mlp"].update(class_names=["hate", 5]), "class_names"),
    "count-zero": (lambda c: c["mlp"].update(num_classes=0), "num_classes"),
    "count-other": (lambda c: c["mlp"].update(num_classes=3), "3 different names"),
    "count-of-weights": (
        lambda c: c["mlp"].update(num_classes=3, class_names=["hate", "arms", "c"]),
        r"'network.3.weight' has shape \(2, 4\)",
    ),
    "label-missing": (lambda c: c["inference"]["labels"].pop("hate"), r"decides on \['arms'\]"),
    "label-unknown": (
        lambda c: c["inference"]["labels"].update(x={"threshold": 0.5}),
        r"expected \['arms', 'hate'\]",
    ),
    "label-without-threshold": (
        lambda c: c["inference"]["labels"].update(hate={}),
        "missing required field `threshold`",
    ),
    "threshold-above-one": (label(threshold=1.5), "inference.labels"),
    "threshold-a-string": (label(threshold="0.5"), "inference.labels"),
    "temperature-zero": (label(temperature=0.0), "inference.labels"),
    "temperature-negative": (label(temperature=-1.0), "inference.labels"),
    "temperature-huge": (label(temperature=1e9), "inference.labels"),
    "label-with-another-key": (label(bias=0.1), "unknown field `bias`"),
    "labels-a-list": (lambda c: c["inference"].update(labels=[0.5, 0.5]), "inference.labels"),
    "table-lacks-a-key": (
        lambda c: c["openai_categories"].pop("illicit"),
        r"missing \['illicit'\]",
    ),
    "table-has-another-key": (
        lambda c: c["openai_categories"].update(fraud=[]),
        r"unknown \['fraud'\]",
    ),
    "table-names-no-label": (
        lambda c: c["openai_categories"].update(violence=["guns"]),
        r"covers 'violence' by \['guns'\]",
    ),
    "table-not-of-lists": (
        lambda c: c["openai_categories"].update(hate="hate"),
        "openai_categories",
    ),
    "task-of-content": (lambda c: c.update(task="content"), "is for heads of labels"),
    "labels-of-content": (
        lambda c: c.update(task="content", openai_categories={}),
        "no labels of their own|none, since",
    ),
    "default-threshold": (lambda c: c["inference"].update(default_threshold=-1), "threshold"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_contradicts_itself_is_refused_with_the_file_and_the_key(tmp_path, config, fault):
    change, match = FAULTS[fault]
    change(config)
    folder = write(tmp_path, json.loads(json.dumps(config)), TENSORS)
    with pytest.raises(ArtifactError, match=match) as told:
        load_artifact(folder)
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)
