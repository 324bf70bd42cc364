"""A graft finds every block by structure, gives its neurons, and changes nothing else."""

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from models import make_artifact
from reference import auto_class
from siren_export.graft import rewrite
from siren_export.graft.extractor import engine_precision, write_extractor
from siren_export.graft.graft import find_blocks, graft
from siren_export.graft.verify import Folders, check_graft
from siren_export.heads.registry import load_artifact
from siren_export.sources.onnx_blocks import Block
from siren_runtime.bundle.progress import silent
from siren_runtime.errors import ArtifactError, BundleError, CheckpointError
from siren_runtime.generation.engine import Engine
from siren_runtime.generation.folder import read_folder
from siren_runtime.generation.manifest import NEURONS_OUTPUT, TrainedOn, load_manifest

Make = Callable[..., Path]
PROMPT = "The history of bread begins"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "granite", "phi3", "phi")
FORMS = (("int4", "cpu"), ("fp16", "cuda"), ("int4", "cuda"))  # beside float32


def _blocks(folder: Path) -> list[Block]:
    model = ir.load(folder / "model.onnx")
    return find_blocks(model, read_folder(folder))


def _states(backbone: Path, tokens: list[int], pooling: str) -> list[np.ndarray]:
    """What transformers says each block gives, float32 [tokens, hidden]."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(backbone)
    model = auto_class(config).from_pretrained(backbone, dtype=torch.float32).eval()
    of_mlps: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda _, __, output: of_mlps.append(output))
    with torch.no_grad():
        hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[1:]
    return [state[0].numpy() for state in (hidden if pooling == "residual_mean" else of_mlps)]


@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_those_of_the_model_as_transformers_runs_it(
    family: str, pooling: Any, generator: Make, backbone: Make, tmp_path: Path
) -> None:
    head = make_artifact(tmp_path / "head", backbone(family), pooling=pooling, hidden_dims=(99,))
    artifact = load_artifact(head)
    manifest = graft(generator(family), artifact, tmp_path / "out", foreign=True)
    assert manifest.check is not None
    engine = Engine(tmp_path / "out", threads=1)
    tokens = engine.encode(PROMPT)
    run = engine.run(len(tokens) + 1, {})
    run.append(tokens)
    states = _states(backbone(family), tokens, pooling)
    expected = np.concatenate(
        [states[block][:, picked] for block, picked in artifact.head.taps.channels.items()], axis=1
    )
    # 99 dense outputs are more than there are neurons, so that these leave the graph as they are.
    found = run.output(NEURONS_OUTPUT)[0]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("together", "joined"), [(1, False), (10**6, True)])
def test_neurons_of_several_blocks_are_picked_at_once_and_are_the_same(
    together: int,
    joined: bool,
    generator: Make,
    backbone: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rewrite, "_TOGETHER", together)
    artifact = load_artifact(make_artifact(tmp_path / "head", backbone("llama")))
    manifest = graft(generator("llama"), artifact, tmp_path / "out", foreign=True)
    assert manifest.check is not None  # against the states that the engine itself gives out
    assert manifest.check.max_difference < 1e-3
    nodes = ir.load(tmp_path / "out" / "model.onnx").graph
    assert any((node.outputs[0].name or "").endswith(".states") for node in nodes) == joined


@pytest.mark.parametrize(
    ("family", "precision", "device"),
    [
        *((family, "fp32", "cpu") for family in FAMILIES),
        *((family, *form) for family, form in zip(FAMILIES, itertools.cycle(FORMS))),
    ],
)
def test_blocks_are_found_in_every_form_that_the_builder_makes(
    family: str, precision: str, device: str, generator: Make
) -> None:
    folder = generator(family, precision, device)
    blocks = _blocks(folder)
    places = [f"/model/layers.{i + 1}/" for i in range(len(blocks))]
    assert all(place in str(b.residual.name) for b, place in zip(blocks, places, strict=True))
    places = [f"/model/layers.{i}/mlp/" for i in range(len(blocks))]
    assert all(place in str(b.mlp.name) for b, place in zip(blocks, places, strict=True))
    assert engine_precision(read_folder(folder)) == precision


def test_names_are_not_what_blocks_are_found_by(generator: Make) -> None:
    folder = generator("gemma2", "fp16", "cuda")
    named = [(b.residual.name, b.mlp.name) for b in _blocks(folder)]
    model = ir.load(folder / "model.onnx")
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    old: dict[str | None, str | None] = {}
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
        for place, value in enumerate(node.outputs):
            if value.name and value.name not in kept:
                old[f"v{number}.{place}"] = value.name
                value.name = f"v{number}.{place}"
    blocks = find_blocks(model, read_folder(folder))
    assert [(old[b.residual.name], old[b.mlp.name]) for b in blocks] == named


def _without_a_block(model: ir.Model) -> None:
    """Let block 2 read what block 0 gave: the stream runs past block 1."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    skipped = values["/model/layers.2/input_layernorm/output_3"]
    before = values["/model/layers.1/input_layernorm/output_3"]
    normed = values["/model/layers.2/input_layernorm/output_0"]
    skipped.replace_all_uses_with(before)
    normed.replace_all_uses_with(values["/model/layers.1/input_layernorm/output_0"])


def test_another_graph_is_refused_by_what_was_looked_for(generator: Make) -> None:
    source = read_folder(generator("llama"))
    model = ir.load(source.path / "model.onnx")
    with pytest.raises(CheckpointError, match="the attention of block 0"):
        find_blocks(model, replace(source, cache_keys=source.cache_keys[::-1]))
    _without_a_block(model)
    with pytest.raises(CheckpointError, match=r"4 or 8 sums along the residual .*found 6"):
        find_blocks(model, source)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, head: Path) -> None:
    with pytest.raises(CheckpointError, match=r"genai_config\.json"):
        graft(tmp_path, load_artifact(head), tmp_path / "out", foreign=True)


def test_a_folder_that_is_grafted_is_not_grafted_again(
    grafted: Path, head: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is grafted already; take the folder"):
        graft(grafted, load_artifact(head), tmp_path / "out", foreign=True, verify=False)
    with pytest.raises(CheckpointError, match="is grafted already"):
        write_extractor(read_folder(grafted), tmp_path / "extractor", "residual_mean")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("layer 3", {"num_hidden_layers": 2}), ("channel", {"hidden_size": 8})],
)
def test_a_head_of_another_backbone_is_refused(
    name: str, settings: dict[str, int], generator: Make, head: Path, tmp_path: Path
) -> None:
    source = read_folder(generator("llama"))
    smaller = {"num_hidden_layers": "blocks", "hidden_size": "hidden_size"}
    facts = {smaller[key]: value for key, value in settings.items()}
    from siren_export.graft.graft import _check_fits

    with pytest.raises(ArtifactError, match=name):
        _check_fits(load_artifact(head), replace(source, **facts))  # type: ignore[arg-type]


def test_a_head_of_another_engine_is_refused_unless_that_is_wanted(
    generator: Make, head: Path, tmp_path: Path
) -> None:
    folder, artifact = generator("llama"), load_artifact(head)
    with pytest.raises(ArtifactError, match="foreign-head"):
        graft(folder, artifact, tmp_path / "out", verify=False)
    other = replace(artifact, trained_on=TrainedOn(engine="0" * 64, text="chat"))
    with pytest.raises(ArtifactError, match="another engine"):
        graft(folder, other, tmp_path / "out", verify=False)
    own = TrainedOn(engine=read_folder(folder).digest(), text="chat")
    manifest = graft(folder, replace(artifact, trained_on=own), tmp_path / "out", verify=False)
    assert manifest.trained_on == own
    assert load_manifest(tmp_path / "out") == manifest


def test_weights_are_linked_or_copied_and_the_folder_is_left_as_it_is(
    generator: Make, head: Path, tmp_path: Path
) -> None:
    folder, artifact = generator("llama"), load_artifact(head)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = graft(folder, artifact, tmp_path / "linked", foreign=True, verify=False)
    assert manifest.linked == ["model.onnx.data"]
    assert (folder / "model.onnx.data").samefile(tmp_path / "linked/model.onnx.data")
    copied = graft(folder, artifact, tmp_path / "copied", foreign=True, verify=False, copy=True)
    assert copied.linked == []
    assert not (folder / "model.onnx.data").samefile(tmp_path / "copied/model.onnx.data")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(BundleError, match="overwrite"):
        graft(folder, artifact, tmp_path / "linked", foreign=True, verify=False)


def test_a_graft_that_gives_other_neurons_is_refused(
    generator: Make, head: Path, grafted: Path, tmp_path: Path
) -> None:
    head_ = load_artifact(head).head
    states = [np.roll(picked, 1) for picked in head_.taps.channels.values()]
    manifest = json.loads((grafted / "guard.json").read_text())
    assert manifest["check"]["max_difference"] < 1e-4
    from siren_export.graft.graft import serialized
    from siren_export.graft.rewrite import add_states, states_of

    folder = generator("llama")
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in folder.iterdir():
        os.link(path, whole / path.name)
    model = ir.load(folder / "model.onnx")
    values = list(states_of(find_blocks(model, read_folder(folder)), head_.taps).values())
    names = [f"state.{i}" for i in range(len(values))]
    add_states(model.graph, values, names)
    (whole / "model.onnx").unlink()
    (whole / "model.onnx").write_bytes(serialized(model))
    folders = Folders(folder, grafted, whole)
    projection = head_.projection if manifest["width"] < manifest["neurons"] else None
    with pytest.raises(BundleError, match="from the engine's own states"):
        check_graft(folders, states, projection, names, silent)
