"""A head that is trained on a generator's own features is grafted on it, by the commands."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from generators import need_genai
from labelled import make_rows, write_jsonl
from siren_command import rows, siren
from siren_runtime import GuardedGenerator
from siren_runtime.generation.folder import read_folder
from siren_train.store.store import FeatureStore

need_genai()


def _scores(head: Path, features: np.ndarray) -> list[float]:
    """A head's scores of a store's features [rows, layers, hidden], from its files alone."""
    module = json.loads((head / "siren_config.json").read_text())["siren_module"]
    tensors = load_file(head / "siren.safetensors")
    x = np.concatenate(
        [
            features[:, layer, module["selected_neurons_dict"][f"layer{layer}_residual_mean"]]
            * module["layer_weights"].get(str(layer), 1.0)
            for layer in sorted(module["selected_layers"])
        ],
        axis=1,
    )
    for place, slot in enumerate(sorted({int(name.split(".")[1]) for name in tensors})):
        x = np.maximum(x, 0) if place else x
        x = x @ tensors[f"network.{slot}.weight"].T + tensors[f"network.{slot}.bias"]
    score: list[float] = (1 / (1 + np.exp(x[:, 0] - x[:, 1]))).tolist()
    return score


@pytest.mark.parametrize("chat", [True, False])
def test_text_becomes_a_head_of_the_generator_that_guards_it(
    chat: bool, generator: Callable[..., Path], tmp_path: Path
) -> None:
    folder, form = generator("llama", "int4"), ("--no-chat", "--chat")[chat]
    fields = [row for row in make_rows(90) if row["response"] is None]
    data = write_jsonl(tmp_path / "data.jsonl", fields)
    store, head, out = tmp_path / "store", tmp_path / "head", tmp_path / "out"
    for arguments in (
        ("extract", folder, data, "-o", store, form, "--max-length", 200, "--threads", 1),
        ("train", store, "-o", head, "--trials", 1, "--members", 1, "--share", 0.9),
        ("graft", folder, head, "-o", out),
    ):
        result = siren(*arguments)
        assert result.exit_code == 0, result.output
    assert "not trained on this engine" not in result.stderr
    text = "chat" if chat else "plain"
    told = json.loads((out / "guard.json").read_text())["trained_on"]
    source = read_folder(folder)
    tokenizer = source.tokenizer_digest()
    assert told == {"engine": source.digest(), "text": text, "tokenizer": tokenizer}

    tests = [row for row in fields if row["split"] == "test"]
    features = FeatureStore.open(store).array("test", "residual_mean")
    expected = _scores(head, features)
    generator_ = GuardedGenerator.load(out, threads=1)
    found = [generator_.read(row["prompt"], chat=chat).score for row in tests]
    assert found == pytest.approx(expected, abs=1e-3)
    assert max(found) - min(found) > 0.2

    asked = ("generate", out, tests[0]["prompt"], "--max-tokens", 4, "--threshold", 1, "--json")
    result = siren(*asked, form)
    assert result.exit_code == 0, result.output
    *pieces, ending = rows(result)
    assert pieces
    assert ending["prompt"]["score"] == pytest.approx(found[0], abs=1e-6)
    result = siren(*asked, "--no-chat" if chat else "--chat")
    assert result.exit_code == 1
    assert f"trained on {text} text" in result.stderr
    result = siren("graft", generator("llama", "fp32"), head, "-o", tmp_path / "other")
    assert result.exit_code == 1
    assert "was trained on features of another engine" in result.stderr
    assert not (tmp_path / "other").exists()


def test_what_an_earlier_release_pooled_is_trained_on_and_does_not_say_its_tokenizer(
    generator: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", make_rows(90))
    store, head, out = tmp_path / "store", tmp_path / "head", tmp_path / "out"
    extract = ("extract", generator("llama", "int4"), data, "-o", store, "--max-length", 200)
    assert siren(*extract, "--threads", 1).exit_code == 0
    manifest = json.loads((store / "store.json").read_text())
    del manifest["generator"]["tokenizer"], manifest["engines"]
    (store / "store.json").write_text(json.dumps(manifest))
    for arguments in (
        ("train", store, "-o", head, "--trials", 1, "--members", 1, "--share", 0.9),
        ("graft", generator("llama", "int4"), head, "-o", out),
    ):
        result = siren(*arguments)
        assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "a head does not say which tokenizer and chat template it was trained with" in said
    assert GuardedGenerator.load(out, threads=1).read("bread").tokens
