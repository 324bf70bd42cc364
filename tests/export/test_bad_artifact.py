"""SIREN head artifacts in which anything is off are refused by name."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mutations import LFS_POINTER
from siren_export.heads.base import Artifact
from siren_export.heads.registry import load_artifact
from siren_runtime.errors import ArtifactError
from valid_artifact import CONFIG, CONFIG_FILE, TENSORS, WEIGHTS_FILE, Config, Tensors, write


def at(*path: str, value: Any) -> Callable[[Config], None]:
    """A change of the config: set the value at a path."""

    def change(config: Config) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


def without(*path: str) -> Callable[[Config], None]:
    """A change of the config: drop the key at a path."""

    def change(config: Config) -> None:
        for key in path[:-1]:
            config = config[key]
        del config[path[-1]]

    return change


NEURONS = ("siren_module", "selected_neurons_dict")
CHANNELS = (*NEURONS, "layer0_residual_mean")

# name -> change of CONFIG, what the message must hold
BAD_CONFIGS: dict[str, tuple[Callable[[Config], None], str]] = {
    "trajectory": (at("task", value="trajectory"), "siren_module"),
    "unknown-task": (at("task", value="regression"), "task is 'regression'"),
    "task-null": (at("task", value=None), "$.task"),
    "no-base-model": (without("base_model"), "base_model"),
    "empty-model-id": (at("base_model", "model_id", value=""), "$.base_model.model_id"),
    "model-id-a-number": (at("base_model", "model_id", value=5), "$.base_model.model_id"),
    "revision-a-number": (at("base_model", "revision", value=1), "$.base_model.revision"),
    "no-siren-module": (without("siren_module"), "siren_module"),
    "pooling-last": (at("siren_module", "pooling_type", value="last"), "pooling_type is 'last'"),
    "pooling-null": (at("siren_module", "pooling_type", value=None), "pooling_type"),
    "no-layers": (at("siren_module", "selected_layers", value=[]), "selected_layers"),
    "layer-twice": (at("siren_module", "selected_layers", value=[0, 3, 0]), "layer 0 twice"),
    "layer-negative": (at("siren_module", "selected_layers", value=[0, -3]), "selected_layers"),
    "layer-fractional": (at("siren_module", "selected_layers", value=[0, 3.5]), "selected_layers"),
    "layer-a-string": (at("siren_module", "selected_layers", value=["0", 3]), "selected_layers"),
    "layer-a-bool": (at("siren_module", "selected_layers", value=[False, 3]), "selected_layers"),
    "layer-huge": (at("siren_module", "selected_layers", value=[0, 2**40]), "selected_layers"),
    "layers-an-object": (at("siren_module", "selected_layers", value={"0": 3}), "selected_layers"),
    "layer-without-channels": (without(*CHANNELS), "missing 'layer0_residual_mean'"),
    "channels-without-layer": (
        at(*NEURONS, "layer9_residual_mean", value=[1]),
        "unexpected 'layer9_residual_mean'",
    ),
    "channels-of-the-other-pooling": (
        at("siren_module", "pooling_type", value="mlp_mean"),
        "missing 'layer0_mlp_mean', 'layer3_mlp_mean'",
    ),
    "channels-empty": (at(*CHANNELS, value=[]), "layer0_residual_mean selects no channel"),
    "channel-twice": (at(*CHANNELS, value=[7, 7]), "layer0_residual_mean names channel 7"),
    "channel-negative": (at(*CHANNELS, value=[7, -1]), "selected_neurons_dict"),
    "channel-fractional": (at(*CHANNELS, value=[7, 0.5]), "selected_neurons_dict"),
    "channel-beyond-64-bits": (at(*CHANNELS, value=[7, 2**70]), "selected_neurons_dict"),
    "channel-nested": (at(*CHANNELS, value=[[7], 2]), "selected_neurons_dict"),
    "layer-weight-key": (
        at("siren_module", "layer_weights", value={"layer3": 1.0}),
        "layer_weights has the key 'layer3'",
    ),
    "layer-weight-key-padded": (
        at("siren_module", "layer_weights", value={"03": 1.0}),
        "layer_weights has the key '03'",
    ),
    "layer-weight-key-long": (
        at("siren_module", "layer_weights", value={"9" * 9000: 1.0}),
        "layer_weights has the key",
    ),
    "layer-weight-a-string": (
        at("siren_module", "layer_weights", value={"3": "1.0"}),
        "layer_weights",
    ),
    "layer-weight-nan": (
        at("siren_module", "layer_weights", value={"3": float("nan")}),
        CONFIG_FILE,
    ),
    "layer-weight-infinite-in-float32": (
        at("siren_module", "layer_weights", value={"3": -1e39}),
        "layer_weights.3 is -1e+39",
    ),
    "input-dim-disagrees": (at("mlp", "input_dim", value=6), "input_dim is 6"),
    "input-dim-a-string": (at("mlp", "input_dim", value="5"), "$.mlp.input_dim"),
    "input-dim-zero": (at("mlp", "input_dim", value=0), "$.mlp.input_dim"),
    "no-mlp": (without("mlp"), "mlp"),
    "hidden-dim-zero": (at("mlp", "layer_dims", value=[0]), "$.mlp.layer_dims"),
    "hidden-dim-wrong": (at("mlp", "layer_dims", value=[8]), "'network.0.weight' has shape (4, 5)"),
    "hidden-dim-huge": (at("mlp", "layer_dims", value=[2**31 - 1]), "(2147483647, 5)"),
    "hidden-layer-more": (
        lambda c: c["mlp"].update(layer_dims=[4, 4], dropout_rates=[0.2, 0.2]),
        "missing 'network.6.bias', 'network.6.weight'",
    ),
    "dropout-rates-fewer": (at("mlp", "dropout_rates", value=[]), "mlp.dropout_rates 0"),
    "dropout-rate-one": (at("mlp", "dropout_rates", value=[1.0]), "$.mlp.dropout_rates"),
    "dropout-rate-negative": (at("mlp", "dropout_rates", value=[-0.1]), "$.mlp.dropout_rates"),
    "dropout-takes-no-place": (
        at("mlp", "dropout_rates", value=[0]),
        "missing 'network.2.bias', 'network.2.weight', unexpected 'network.3.bias'",
    ),
    "one-class": (at("mlp", "num_classes", value=1), "$.mlp.num_classes"),
    "three-classes-of-two": (at("mlp", "num_classes", value=3), "'network.3.weight' has shape"),
    "no-inference": (without("inference"), "inference"),
    "max-length-zero": (at("inference", "max_length", value=0), "$.inference.max_length"),
    "max-length-fractional": (at("inference", "max_length", value=51.5), "$.inference.max_length"),
    "threshold-above-one": (at("inference", "default_threshold", value=50), "default_threshold"),
    "threshold-negative": (at("inference", "default_threshold", value=-0.1), "default_threshold"),
    "threshold-missing": (without("inference", "default_threshold"), "default_threshold"),
}


@pytest.mark.parametrize("fault", BAD_CONFIGS)
def test_a_config_that_is_wrong_or_inconsistent_is_refused(fault: str, tmp_path: Path) -> None:
    change, culprit = BAD_CONFIGS[fault]
    config = copy.deepcopy(CONFIG)
    change(config)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(write(tmp_path, config, TENSORS))
    assert culprit in str(caught.value)
    assert CONFIG_FILE in str(caught.value)


BAD_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "cut": (json.dumps(CONFIG).encode()[:-1], "truncated"),
    "not-an-object": (b"[]", "object"),
    "not-json": (b"base_model: x", "malformed"),
    "python-literal": (b"{'task': 'content'}", "malformed"),
    "not-utf8": (b'{"task": "\xff\xfe"}', "utf-8"),
    "byte-order-mark": (b"\xef\xbb\xbf" + json.dumps(CONFIG).encode(), "malformed"),
    "nested-too-deeply": (b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nests too deeply"),
    "too-large": (b" " * (17 << 20), "17,825,792 bytes"),
}


@pytest.mark.parametrize("fault", BAD_JSON)
def test_a_config_that_is_no_sane_json_is_refused(fault: str, tmp_path: Path) -> None:
    content, culprit = BAD_JSON[fault]
    write(tmp_path, CONFIG, TENSORS)
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(tmp_path)
    assert str(tmp_path / CONFIG_FILE) in str(caught.value)
    assert culprit in str(caught.value).lower()  # msgspec 0.23 says UTF-8


def tensors_with(**changes: Any) -> Tensors:
    """TENSORS with some replaced; None drops one. The names are given as network_0_weight."""
    tensors = dict(TENSORS)
    for key, values in changes.items():
        name = key.replace("_", ".")
        tensors.pop(name, None)
        if values is not None:
            tensors[name] = values
    return tensors


FIRST = TENSORS["network.0.weight"]
ONE_NAN = FIRST.copy()
ONE_NAN[1, 1] = np.nan
# name -> tensors in place of TENSORS, what the message must hold
BAD_TENSORS: dict[str, tuple[Tensors, str]] = {
    "none": ({}, "missing 'network.0.bias', 'network.0.weight'"),
    "missing": (tensors_with(network_3_bias=None), "missing 'network.3.bias', unexpected none"),
    "extra": (tensors_with(extra=FIRST), "missing none, unexpected 'extra'"),
    "many-extra": ({**TENSORS, **{f"x{i}": FIRST for i in range(9)}}, "and 4 more"),
    "prefixed": ({f"mlp.{name}": t for name, t in TENSORS.items()}, "'mlp.network.0.bias'"),
    "transposed": (
        tensors_with(network_0_weight=FIRST.T.copy()),
        "'network.0.weight' has shape (5, 4)",
    ),
    "bias-a-column": (
        tensors_with(network_0_bias=np.ones((4, 1), np.float32)),
        "'network.0.bias' has shape (4, 1)",
    ),
    "integers": (
        tensors_with(network_0_weight=FIRST.astype(np.int32)),
        "'network.0.weight' is int32",
    ),
    "booleans": (tensors_with(network_0_bias=np.ones(4, bool)), "'network.0.bias' is bool"),
    "nan": (
        tensors_with(network_0_weight=ONE_NAN),
        "'network.0.weight' has 1 values that are not finite",
    ),
    "infinite": (
        tensors_with(network_3_bias=np.array([np.inf, 0], np.float32)),
        "'network.3.bias' has 1 values",
    ),
    "nan-in-bfloat16": (
        tensors_with(network_3_bias=np.array([np.nan, 0], ml_dtypes.bfloat16)),
        "'network.3.bias' has 1 values",
    ),
    "float64-beyond-float32": (
        tensors_with(network_3_bias=np.array([1e300, 0])),
        "'network.3.bias' has 1 values that are not finite in float32",
    ),
}


@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_weights_that_do_not_fit_the_config_are_refused(fault: str, tmp_path: Path) -> None:
    tensors, culprit = BAD_TENSORS[fault]
    with pytest.raises(ArtifactError) as caught:
        load_artifact(write(tmp_path, CONFIG, tensors))
    assert culprit in str(caught.value)
    assert str(tmp_path / WEIGHTS_FILE) in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_and_one_that_is_a_folder_are_named(name: str, tmp_path: Path) -> None:
    write(tmp_path, CONFIG, TENSORS)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: there is no such file"):
        load_artifact(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ArtifactError, match=f"{name}: it is not a regular file"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_git_lfs_pointer_in_place_of_a_file_is_named(name: str, tmp_path: Path) -> None:
    write(tmp_path, CONFIG, TENSORS)
    (tmp_path / name).write_text(LFS_POINTER)
    with pytest.raises(ArtifactError, match=rf"{name}: holds a pointer of git LFS.*git lfs pull"):
        load_artifact(tmp_path)


def test_a_truncated_weights_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, CONFIG, TENSORS) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=WEIGHTS_FILE):
        load_artifact(tmp_path)


def load_or_refusal(folder: Path) -> Artifact | str:
    """The artifact, or our error's message; any other failure is the test's."""
    try:
        return load_artifact(folder)
    except ArtifactError as error:
        return str(error)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


def paths(value: object, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key in the config."""
    found = [prefix] if prefix else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*prefix, key))
    return found


@given(st.lists(st.tuples(st.sampled_from(paths(CONFIG)), _json), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_config_with_random_values_loads_or_gives_our_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[str, ...], Any]]
) -> None:
    config = copy.deepcopy(CONFIG)
    for path, value in sorted(changes, key=lambda change: -len(change[0])):
        at(*path, value=value)(config)
    folder = tmp_path_factory.getbasetemp() / "random-values"
    loaded = load_or_refusal(write(folder, config, TENSORS))
    if isinstance(loaded, str):
        assert str(folder) in loaded
    else:
        assert loaded.head.n_features == loaded.head.dense[0].weight.shape[1] == 5


@given(st.binary(max_size=100), st.integers(0, 700), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_a_config_with_random_bytes_loads_or_gives_our_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, start: int, length: int
) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "random-bytes", CONFIG, TENSORS)
    data = json.dumps(CONFIG).encode()
    (folder / CONFIG_FILE).write_bytes(data[:start] + noise + data[start + length :])
    loaded = load_or_refusal(folder)
    assert not isinstance(loaded, str) or str(folder) in loaded
