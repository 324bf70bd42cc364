"""SIREN head artifacts are read as llm-siren reads them."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file as save_torch_file
from siren_guard.siren_guard import _AdaptiveMLPClassifier

from siren_export.heads.registry import load_artifact
from valid_artifact import CONFIG, CONFIG_FILE, TENSORS, WEIGHTS_FILE, Config, write


def test_every_field_is_read_and_layers_ascend(tmp_path: Path) -> None:
    artifact = load_artifact(write(tmp_path, CONFIG, TENSORS))
    assert artifact.source == str(tmp_path)
    assert (artifact.model_id, artifact.model_revision) == ("org/backbone", "0123abc")
    assert artifact.head.pooling == "residual_mean"
    assert [selection.layer for selection in artifact.head.layers] == [0, 3]
    assert [selection.weight for selection in artifact.head.layers] == [1.0, 0.25]
    assert [selection.channels.tolist() for selection in artifact.head.layers] == [
        [7, 2],
        [1, 0, 5],
    ]
    assert artifact.head.layers[0].channels.dtype == np.int64
    assert (artifact.head.n_features, artifact.head.taps.deepest, artifact.head.classes) == (
        5,
        3,
        2,
    )
    assert (artifact.max_length, artifact.threshold) == (512, 0.5)
    np.testing.assert_array_equal(artifact.head.dense[0].weight, TENSORS["network.0.weight"])
    np.testing.assert_array_equal(artifact.head.dense[1].bias, TENSORS["network.3.bias"])


@pytest.mark.parametrize("revision", [None, ""])
def test_no_revision_is_the_main_branch(revision: str | None, tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIG)
    config["base_model"]["revision"] = revision
    assert load_artifact(write(tmp_path, config, TENSORS)).model_revision is None
    del config["base_model"]["revision"]
    assert load_artifact(write(tmp_path, config, TENSORS)).model_revision is None


def test_task_content_is_the_default(tmp_path: Path) -> None:
    assert load_artifact(write(tmp_path, {**CONFIG, "task": "content"}, TENSORS)).head.classes == 2


FLOATS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_float_dtype_gives_the_weights_that_llm_siren_loads(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    write(tmp_path, CONFIG, TENSORS)
    stored = {name: torch.from_numpy(values).to(dtype) for name, values in TENSORS.items()}
    save_torch_file(stored, tmp_path / WEIGHTS_FILE)
    reference = _AdaptiveMLPClassifier(5, [4], [0.2])
    reference.load_state_dict(stored, strict=True)
    loaded = reference.state_dict()
    for slot, linear in zip((0, 3), load_artifact(tmp_path).head.dense, strict=True):
        assert linear.weight.dtype == linear.bias.dtype == np.float32
        np.testing.assert_array_equal(linear.weight, loaded[f"network.{slot}.weight"].numpy())
        np.testing.assert_array_equal(linear.bias, loaded[f"network.{slot}.bias"].numpy())


@st.composite
def heads(draw: st.DrawFn) -> Config:
    """Any config that is valid, with sizes small enough to write its weights."""
    pooling = draw(st.sampled_from(["residual_mean", "mlp_mean"]))
    layers = draw(st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True))
    channels = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6, unique=True)
    selected = {f"layer{layer}_{pooling}": draw(channels) for layer in layers}
    dims = draw(st.lists(st.integers(1, 5), max_size=4))
    rates = st.one_of(st.just(0.0), st.just(0), st.floats(0.01, 0.99))
    weights = st.floats(-10, 10) | st.integers(-3, 3)
    mlp: Config = {
        "input_dim": sum(map(len, selected.values())),
        "layer_dims": dims,
        "dropout_rates": draw(st.lists(rates, min_size=len(dims), max_size=len(dims))),
    }
    if draw(st.booleans()):
        mlp["num_classes"] = draw(st.integers(2, 6))
    return {
        "base_model": {"model_id": draw(st.text(min_size=1, max_size=20)), "revision": None},
        "siren_module": {
            "pooling_type": pooling,
            "selected_layers": layers,
            "layer_weights": draw(st.dictionaries(st.integers(0, 40).map(str), weights)),
            "selected_neurons_dict": selected,
        },
        "mlp": mlp,
        "inference": {
            "max_length": draw(st.integers(1, 10_000)),
            "default_threshold": draw(st.floats(0, 1) | st.sampled_from([0, 1])),
        },
        draw(st.sampled_from(["training", "notes"])): draw(st.text(max_size=5)),
    }


@given(heads(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_valid_head_is_read_as_llm_siren_builds_it(
    tmp_path_factory: pytest.TempPathFactory, config: Config, seed: int
) -> None:
    module, mlp = config["siren_module"], config["mlp"]
    network = _AdaptiveMLPClassifier(
        mlp["input_dim"], mlp["layer_dims"], mlp["dropout_rates"], mlp.get("num_classes", 2)
    ).eval()
    folder = tmp_path_factory.mktemp("head")
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_torch_file(network.state_dict(), folder / WEIGHTS_FILE)

    artifact = load_artifact(folder)

    assert artifact.model_id == config["base_model"]["model_id"]
    assert artifact.head.pooling == module["pooling_type"]
    assert artifact.head.classes == mlp.get("num_classes", 2)
    assert artifact.max_length == config["inference"]["max_length"]
    assert artifact.threshold == config["inference"]["default_threshold"]
    assert [selection.layer for selection in artifact.head.layers] == sorted(
        module["selected_layers"]
    )
    for selection in artifact.head.layers:
        key = f"layer{selection.layer}_{artifact.head.pooling}"
        assert selection.channels.tolist() == module["selected_neurons_dict"][key]
        assert selection.weight == module["layer_weights"].get(str(selection.layer), 1.0)

    features = np.random.default_rng(seed).standard_normal(
        (1, artifact.head.n_features), np.float32
    )
    hidden = features
    for linear in artifact.head.dense[:-1]:
        hidden = np.maximum(hidden @ linear.weight.T + linear.bias, 0)
    logits = hidden @ artifact.head.dense[-1].weight.T + artifact.head.dense[-1].bias
    with torch.no_grad():
        expected = network(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
