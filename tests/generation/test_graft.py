"""A graft finds every block by structure, gives its neurons, and changes nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from backbones import BackboneSpec
from models import make_artifact, make_backbone
from siren_command import siren
from siren_export.graft import rewrite
from siren_export.graft.extractor import write_extractor
from siren_export.graft.graft import find_blocks, graft
from siren_export.heads.registry import load_artifact
from siren_export.sources.onnx_blocks import Block, TransformerGraph
from siren_runtime.bundle.backbone import ModelName
from siren_runtime.errors import ArtifactError, BundleError, CheckpointError
from siren_runtime.generation.folder import read_folder
from siren_runtime.generation.manifest import NEURONS_OUTPUT, TrainedOn, load_manifest

Make = Callable[..., Path]


def _blocks(folder: Path) -> list[Block]:
    model = ir.load(folder / "model.onnx")
    return find_blocks(model, read_folder(folder))


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


def test_a_graph_in_a_folder_of_its_own_is_refused_by_name(
    generator: Make, head: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(generator("llama"), tmp_path / "copy"))
    (folder / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).rename(folder / "onnx" / name)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "onnx/model.onnx"
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"decoder\.filename is 'onnx/model\.onnx'"):
        graft(folder, load_artifact(head), tmp_path / "out", foreign=True, verify=False)


def test_weights_in_a_folder_of_their_own_are_refused_by_name(
    generator: Make, head: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(generator("llama"), tmp_path / "copy"))
    model = ir.load(folder / "model.onnx")
    (folder / "weights").mkdir()
    ir.save(model, folder / "model.onnx", external_data="weights/model.onnx.data")
    with pytest.raises(
        CheckpointError, match=r"weights 'weights/model\.onnx\.data' are not beside"
    ):
        graft(folder, load_artifact(head), tmp_path / "out", foreign=True, verify=False)


def test_a_graft_replaces_a_graft_and_no_guard(
    generator: Make, head: Path, bundle: Path, tmp_path: Path
) -> None:
    artifact, guard = load_artifact(head), Path(shutil.copytree(bundle, tmp_path / "guard"))
    before = sorted(guard.iterdir())
    options = {"foreign": True, "verify": False, "overwrite": True}
    with pytest.raises(BundleError, match="is no grafted generator"):
        graft(generator("llama"), artifact, guard, **options)
    assert sorted(guard.iterdir()) == before
    for _ in range(2):
        manifest = graft(generator("llama"), artifact, tmp_path / "out", **options)
    assert load_manifest(tmp_path / "out") == manifest
    assert manifest.backbone.id == generator("llama").name
    assert manifest.backbone.named == ModelName(artifact.model_id, None)


def test_a_folder_that_is_grafted_is_not_grafted_again(
    grafted: Path, head: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is grafted already; take the folder"):
        graft(grafted, load_artifact(head), tmp_path / "out", foreign=True, verify=False)
    with pytest.raises(CheckpointError, match="is grafted already"):
        write_extractor(read_folder(grafted), tmp_path / "extractor", "residual_mean")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 6}, r"reads layer 5; .* has layers 0 to 3, so the head belongs"),
        ({"hidden_size": 128}, r"reads channel \d+; .* has channels 0 to 63, so the head belongs"),
    ],
)
def test_a_head_of_another_backbone_is_refused(
    settings: dict[str, int], message: str, generator: Make, tmp_path: Path
) -> None:
    other = make_backbone(tmp_path / "backbone", BackboneSpec("llama", settings))
    artifact, out = load_artifact(make_artifact(tmp_path / "head", other)), tmp_path / "out"
    with pytest.raises(ArtifactError, match=message):
        graft(generator("llama"), artifact, out, foreign=True, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone", "head"]


def test_a_model_whose_logits_are_no_numbers_is_refused(
    generator: Make, head: Path, tmp_path: Path
) -> None:
    """What they come of is behind all that the head reads."""
    folder = Path(shutil.copytree(generator("llama"), tmp_path / "genai"))
    tensor = ir.load(folder / "model.onnx").graph.initializers["lm_head.MatMul.weight"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    file, shape = folder / tensor.location, tuple(tensor.shape.numpy())
    np.memmap(file, np.float32, "r+", tensor.offset or 0, shape)[:] = np.nan
    with pytest.raises(BundleError, match="its logits are not all numbers after 'The history"):
        graft(folder, load_artifact(head), tmp_path / "out", foreign=True)
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json"])
def test_a_head_of_another_template_or_tokenizer_is_refused_unless_that_is_wanted(
    name: str, generator: Make, head: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(generator("llama"), tmp_path / "genai"))
    source = read_folder(folder)
    own = TrainedOn(engine=source.digest(), text="chat", tokenizer=source.tokenizer_digest())
    artifact = replace(load_artifact(head), trained_on=own)
    options: dict[str, Any] = {"verify": False, "overwrite": True}
    assert graft(folder, artifact, tmp_path / "out", **options).trained_on == own
    file = folder / name
    file.write_text(file.read_text() + "\n" if file.exists() else "{{ messages }}")
    with pytest.raises(ArtifactError, match=r"another tokenizer or chat template.*--foreign-head"):
        graft(folder, artifact, tmp_path / "out", **options)
    graft(folder, artifact, tmp_path / "out", foreign=True, **options)
    untold = replace(artifact, trained_on=TrainedOn(engine=own.engine, text="chat"))
    graft(folder, untold, tmp_path / "out", **options)


@pytest.mark.parametrize("own", [True, False])
def test_the_command_says_of_a_foreign_head_that_its_tokenizer_is_another(
    own: bool, generator: Make, head: Path, tmp_path: Path
) -> None:
    source = read_folder(generator("llama"))
    path = Path(shutil.copytree(head, tmp_path / "head")) / "siren_config.json"
    tokenizer = source.tokenizer_digest() if own else "0" * 64
    trained_on = {"engine": source.digest(), "text": "chat", "tokenizer": tokenizer}
    path.write_text(json.dumps({**json.loads(path.read_text()), "trained_on": trained_on}))
    options = ("-o", tmp_path / "out", "--foreign-head", "--no-verify")
    result = siren("graft", source.path, path.parent, *options)
    assert result.exit_code == 0, result.stderr
    assert ("was trained with another tokenizer or chat template" in result.stderr) != own
    assert "was not trained on this engine's features" not in result.stderr


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


Change = Callable[[ir.Graph], None]


def _behind(output: str, *operators: str) -> Change:
    """Put operators of one input behind an output of a graph."""

    def change(graph: ir.Graph) -> None:
        (place,) = (n for n, value in enumerate(graph.outputs) if value.name == output)
        value = last = graph.outputs[place]
        value.name = f"{output}.before"
        for number, operator in enumerate(operators):
            node = ir.node(operator, [last], name=f"{output}.{number}")
            graph.append(node)
            (last,) = node.outputs
        last.name, last.dtype, last.shape = output, value.dtype, value.shape
        graph.outputs[place] = last

    return change


def _moved(blocks: list[Block]) -> list[Block]:
    """Each block but the last with the state of the one behind it."""
    pairs = zip(blocks, [*blocks[1:], blocks[-1]], strict=True)
    return [replace(one, residual=other.residual) for one, other in pairs]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_behind("logits", "Neg"), "generates other tokens than before the graft"),
        (_behind(NEURONS_OUTPUT, "Neg"), "from the engine's own states"),
        (_behind(NEURONS_OUTPUT, "Neg", "Exp", "Neg", "Log"), "not all finite"),
        (None, "from the engine's own states"),
    ],
)
def test_a_graft_that_changes_tokens_or_gives_other_neurons_is_refused(
    change: Change | None,
    message: str,
    generator: Make,
    head: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def add(graph: ir.Graph, blocks: list[Block], *rest: Any) -> None:
        rewrite.add_neurons(graph, blocks if change else _moved(blocks), *rest)
        if change:
            change(graph)

    monkeypatch.setattr("siren_export.graft.graft.add_neurons", add)
    with pytest.raises(BundleError, match=message):
        graft(generator("llama"), load_artifact(head), tmp_path / "out", foreign=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["llama", "phi", "gemma3"])
@pytest.mark.parametrize("steps", [1, -1])
@pytest.mark.parametrize("state", ["residual", "mlp"])
def test_a_tap_of_another_block_is_refused(
    state: str, steps: int, family: str, generator: Make
) -> None:
    source = read_folder(generator(family, "int4"))
    graph = ir.load(source.path / source.graph).graph
    found = TransformerGraph(graph, "model.onnx", source.tokens, source.logits)
    blocks = found.blocks(source.blocks, source.cache_keys)
    moved = [
        replace(block, **{state: getattr(blocks[(block.number + steps) % len(blocks)], state)})
        for block in blocks
    ]
    with pytest.raises(CheckpointError, match="between the streams before and behind block"):
        found.check_places(moved, source.cache_keys)
    for block, other in zip(blocks, moved, strict=True):
        one = [*blocks[: block.number], other, *blocks[block.number + 1 :]]
        with pytest.raises(CheckpointError, match="between the streams before and behind block"):
            found.check_places(one, source.cache_keys)


def test_a_tap_in_the_middle_of_a_block_is_refused(generator: Make) -> None:
    source = read_folder(generator("llama", "int4"))
    graph = ir.load(source.path / source.graph).graph
    found = TransformerGraph(graph, "model.onnx", source.tokens, source.logits)
    blocks = found.blocks(source.blocks, source.cache_keys)
    values = {value.name: value for node in graph for value in node.outputs}
    middle = values["/model/layers.1/post_attention_layernorm/output_3"]
    blocks[1] = replace(blocks[1], residual=middle)
    with pytest.raises(CheckpointError, match=r"the MLP between the streams .*block 1"):
        found.check_places(blocks, source.cache_keys)
