"""Heads and backbones by hub repository id: pinned, minimal, refused with one clear error."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from hub_server import HubServer

# Run in a process of its own, since huggingface_hub reads the environment when it is imported.
_LOAD = """
import json, sys
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_runtime.errors import SirenError


def load(kind, source, revision=None):
    if kind == "artifact":
        artifact = load_artifact(source, revision=revision)
        return {"source": artifact.source, "bias": artifact.head.dense[0].bias.tolist()}
    checkpoint = load_checkpoint(source, revision=revision)
    return {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "norm": checkpoint.weights.read("norm.weight").tolist(),
    }

answers = []
for wanted in json.loads(sys.argv[1]):
    try:
        answers.append(load(*wanted))
    except SirenError as error:
        answers.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(answers))
"""


def write_artifact(folder: Path, bias: float) -> Path:
    folder.mkdir()
    config = {
        "base_model": {"model_id": "org/backbone", "revision": "v1"},
        "siren_module": {
            "pooling_type": "mlp_mean",
            "selected_layers": [2],
            "selected_neurons_dict": {"layer2_mlp_mean": [3]},
        },
        "mlp": {"input_dim": 1, "layer_dims": [], "dropout_rates": []},
        "inference": {"max_length": 8, "default_threshold": 0.5},
    }
    (folder / "siren_config.json").write_text(json.dumps(config))
    weights = {
        "network.0.weight": np.ones((2, 1), np.float32),
        "network.0.bias": np.full(2, bias, np.float32),
    }
    save_file(weights, folder / "siren.safetensors")
    (folder / "README.md").write_text("a head")
    return folder


def write_backbone(folder: Path, norm: float, *, sharded: bool = False) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = {"model.norm.weight": np.full(2, norm, np.float32)}
    if sharded:
        shard = "model-00001-of-00001.safetensors"
        save_file(tensors, folder / shard)
        index = {"weight_map": {"model.norm.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(tensors, folder / "model.safetensors")
    for name in ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors"):
        (folder / name).write_bytes(b"not to be fetched")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    pickled = write_backbone(tmp_path / "pickled", 9.0)
    (pickled / "model.safetensors").unlink()
    repositories = {
        "org/head": {
            "main": write_artifact(tmp_path / "head", 2.0),
            "v1": write_artifact(tmp_path / "head-v1", 1.0),
        },
        "org/backbone": {
            "main": write_backbone(tmp_path / "backbone", 2.0),
            "v1": write_backbone(tmp_path / "backbone-v1", 1.0, sharded=True),
        },
        "org/pickled": {"main": pickled},
        "org/gated": {"main": tmp_path / "backbone"},
    }
    with HubServer(repositories, gated={"org/gated": "hf_open_sesame"}) as server:
        yield server


def load(
    hub: HubServer, home: Path, *wanted: tuple[str, ...], **environment: str
) -> list[dict[str, Any]]:
    """What load_artifact or load_checkpoint gives, with `home` as the hub's cache.

    `wanted` holds a kind, "artifact" or "checkpoint", a source and perhaps a revision each; they
    are loaded one after another in one process.
    """
    answers: list[dict[str, Any]] = hub.run(_LOAD, json.dumps(wanted), home=home, **environment)
    return answers


def test_a_head_is_loaded_at_its_revision_with_its_two_files(
    hub: HubServer, tmp_path: Path
) -> None:
    wanted = ("artifact", "org/head"), ("artifact", "org/head", "v1")
    main, pinned = load(hub, tmp_path / "home", *wanted)
    assert main == {"source": "org/head", "bias": [2.0, 2.0]}
    assert pinned["bias"] == [1.0, 1.0]
    assert not any("README" in request for request in hub.requests)


def test_a_backbone_is_loaded_at_its_revision_and_says_its_commit(
    hub: HubServer, tmp_path: Path
) -> None:
    backbone, v1 = ("checkpoint", "org/backbone"), hub.commit("org/backbone", "v1")
    wanted = backbone, (*backbone, "v1"), (*backbone, v1)
    main, *pinned = load(hub, tmp_path / "home", *wanted)
    commit = hub.commit("org/backbone")
    assert main == {"source": "org/backbone", "revision": commit, "norm": [2.0, 2.0]}
    for answer in pinned:
        assert answer == {"source": "org/backbone", "revision": v1, "norm": [1.0, 1.0]}


def test_pickles_code_and_second_copies_are_never_fetched(hub: HubServer, tmp_path: Path) -> None:
    load(hub, tmp_path / "home", ("checkpoint", "org/backbone"))
    fetched = " ".join(hub.requests)
    assert "model.safetensors" in fetched
    for name in ("pytorch_model.bin", ".py", "consolidated"):
        assert name not in fetched


def test_a_repository_with_pickles_only_has_no_weights(hub: HubServer, tmp_path: Path) -> None:
    (answer,) = load(hub, tmp_path / "home", ("checkpoint", "org/pickled"))
    assert answer["error"] == "CheckpointError"
    assert "neither model.safetensors" in answer["message"]


def test_hub_failures_are_errors_of_the_loader(hub: HubServer, tmp_path: Path) -> None:
    home, kinds = tmp_path / "home", ("artifact", "checkpoint")
    with HubServer({}) as down:
        pass  # its port is closed again
    reasons: dict[str, tuple[str, ...]] = {
        "no such repository": ("org/nothing",),
        "no such revision": ("org/backbone", "v9"),
        "gated": ("org/gated",),
        "(org/name)": ("no-such-folder",),
    }
    backbone = [(kind, "org/backbone") for kind in kinds]
    there = load(hub, home, *((kind, *wanted) for wanted in reasons.values() for kind in kinds))
    answers = [
        *zip([reason for reason in reasons for _ in kinds], there, strict=True),
        *(("cannot be reached", answer) for answer in load(down, home, *backbone)),
        *(("HF_HUB_OFFLINE", answer) for answer in load(hub, home, *backbone, HF_HUB_OFFLINE="1")),
    ]
    assert [answer["error"] for _, answer in answers] == ["ArtifactError", "CheckpointError"] * 6
    for reason, answer in answers:
        assert reason in answer["message"]


def test_the_token_of_the_environment_opens_a_gated_backbone(
    hub: HubServer, tmp_path: Path
) -> None:
    wanted = ("checkpoint", "org/gated")
    (answer,) = load(hub, tmp_path / "home", wanted, HF_TOKEN="hf_open_sesame")
    assert answer["norm"] == [2.0, 2.0]


def test_a_cached_backbone_loads_offline(hub: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    wanted = ("checkpoint", "org/backbone", "v1")
    online = load(hub, home, wanted)
    assert load(hub, home, wanted, HF_HUB_OFFLINE="1") == online
    assert online[0]["norm"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("checkpoint", "config.json"),
        ("checkpoint", "tokenizer.json"),
        ("checkpoint", "model.safetensors"),
        ("artifact", "siren_config.json"),
        ("artifact", "siren.safetensors"),
    ],
)
def test_what_a_cached_snapshot_lacks_is_to_be_loaded_first(
    kind: str, lacking: str, hub: HubServer, tmp_path: Path
) -> None:
    home, name = tmp_path / "home", "head" if kind == "artifact" else "backbone"
    load(hub, home, (kind, f"org/{name}"))
    (repository,) = (home / "hub").glob("models--*")
    (repository / "snapshots" / hub.commit(f"org/{name}") / lacking).unlink()
    shutil.rmtree(repository / "trees", ignore_errors=True)  # as what clients before 2 leave
    (answer,) = load(hub, home, (kind, f"org/{name}"), HF_HUB_OFFLINE="1")
    assert lacking in answer["message"]
    assert f"hub repository org/{name} may be incomplete: load it once" in answer["message"]
    assert "error" not in load(hub, home, (kind, f"org/{name}"))[0]


def test_what_a_repository_itself_lacks_is_said_as_of_a_folder(
    hub: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "backbone" / "tokenizer.json").unlink()
    wanted = [("checkpoint", "org/backbone"), ("checkpoint", "org/pickled")]
    tokenizer, weights = load(hub, tmp_path / "home", *wanted)
    assert "a fast tokenizer is needed" in tokenizer["message"]
    assert "must be converted to safetensors" in weights["message"]
    assert "incomplete" not in tokenizer["message"] + weights["message"]
