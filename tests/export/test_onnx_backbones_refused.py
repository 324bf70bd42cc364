"""A graph of another form than is known, or that cannot be run, is refused by what was found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from backbones import VOCABULARY, BackboneSpec
from models import make_artifact, make_backbone
from onnx_backbones import export_onnx
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.own_states import OwnStates
from siren_runtime.errors import ArtifactError, BackendError, BundleError, CheckpointError


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = BackboneSpec("llama", {"num_hidden_layers": 2})
    return make_backbone(tmp_path_factory.mktemp("backbone"), spec)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    """The folder of the backbone as model.onnx; do not change it."""
    return export_onnx(backbone, tmp_path_factory.mktemp("graph") / "onnx")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    return make_artifact(tmp_path_factory.mktemp("head"), backbone)


def _changed(source: Path, place: Path, change: Callable[[ir.Model], None]) -> Path:
    """A copy of an exported folder whose graph was changed."""
    shutil.copytree(source, place)
    model = ir.load(place / "model.onnx")
    change(model)
    ir.save(model, place / "changed.onnx", external_data="changed.data")
    return place / "changed.onnx"


def _scaled(model: ir.Model) -> None:
    """Let the second block read half of the stream."""
    graph = model.graph
    adds = [node for node in graph if node.op_type == "Add"]
    stream = next(
        value
        for node in adds
        for value in node.outputs
        if len(value.consumers()) > 1
        and any(user in adds for user in value.consumers())
        and any(one.producer() in adds for one in node.inputs if one is not None)
    )
    half = ir.val("half", const_value=ir.tensor([0.5], name="half"))
    graph.initializers["half"] = half
    product = ir.node("Mul", [stream, half])
    product.outputs[0].name = "halved"
    stream.replace_all_uses_with(product.outputs[0])
    product.replace_input_with(0, stream)
    producer = stream.producer()
    assert producer is not None
    graph.insert_after(producer, product)


def _odd_input(model: ir.Model, name: str = "bias_ids") -> None:
    """Let the graph read another input, beside the token ids."""
    graph = model.graph
    (ids,) = [value for value in graph.inputs if value.name == "input_ids"]
    odd = ir.val(name, dtype=ids.dtype, shape=ids.shape)
    graph.inputs.append(odd)
    total = ir.node("Add", [ids, odd])
    total.outputs[0].name = "total"
    ids.replace_all_uses_with(total.outputs[0])
    total.replace_input_with(0, ids)
    graph.insert_before(graph[0], total)


@pytest.mark.parametrize(
    ("change", "looked_for"),
    [(_scaled, "between two blocks"), (_odd_input, "found 'bias_ids'")],
)
def test_another_graph_is_refused_by_what_was_looked_for(
    change: Callable[[ir.Model], None],
    looked_for: str,
    graph: Path,
    head: Path,
    tmp_path: Path,
) -> None:
    changed = _changed(graph, tmp_path / "copy", change)
    with pytest.raises(CheckpointError, match=looked_for):
        export_bundle(load_artifact(head), load_checkpoint(changed), tmp_path / "x")


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"num_hidden_layers": 3}, CheckpointError, "3 or 6 sums along the residual stream"),
        ({"num_hidden_layers": 4}, CheckpointError, "is num_hidden_layers 4, found none"),
        ({"num_hidden_layers": None}, CheckpointError, "looked for num_hidden_layers"),
        ({"num_hidden_layers": 1}, ArtifactError, "out of range"),
        ({"max_position_embeddings": 20}, CheckpointError, "20 positions"),
    ],
)
def test_a_config_of_another_graph_is_refused(
    keys: dict[str, Any],
    error: type[Exception],
    message: str,
    graph: Path,
    head: Path,
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(graph, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **keys}))
    with pytest.raises(error, match=message):
        export_bundle(load_artifact(head), load_checkpoint(copy), tmp_path / "x")


def test_a_folder_of_several_graphs_asks_for_one(graph: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(graph, tmp_path / "copy"))
    shutil.copyfile(copy / "model.onnx", copy / "decoder_with_past_model.onnx")
    assert load_checkpoint(copy).onnx is not None
    (copy / "model.onnx").rename(copy / "decoder_model.onnx")
    with pytest.raises(CheckpointError, match="name the file"):
        load_checkpoint(copy)
    assert load_checkpoint(copy / "decoder_model.onnx").onnx is not None


def test_a_graph_may_not_reach_out_of_its_folder(graph: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(graph, tmp_path / "copy"))
    data = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(data.replace(b"model.onnx.data", b"../del.onnx.dat"))
    with pytest.raises(CheckpointError, match=r"\.\./del"):
        load_checkpoint(copy)


def _of_no_such_operator(model: ir.Model) -> None:
    """Let the logits be made by an operator that ONNX Runtime does not know."""
    producer = model.graph.outputs[0].producer()
    assert producer is not None
    producer.op_type = "MatMulOfNobody"


def _of_one_token(model: ir.Model) -> None:
    """Leave one row of the embeddings, which other tokens are beyond."""
    ids = model.graph.inputs[0]
    (gather,) = [node for node in model.graph if node.op_type == "Gather" and ids in node.inputs]
    rows = gather.inputs[0]
    assert rows is not None
    assert rows.const_value is not None
    values = ir.tensor(rows.const_value.numpy()[:1].copy(), name="one")
    one = ir.val("one", dtype=values.dtype, shape=values.shape, const_value=values)
    model.graph.initializers["one"] = one
    gather.replace_input_with(0, one)


@pytest.mark.parametrize("change", [_of_no_such_operator, _of_one_token])
def test_a_file_that_cannot_be_run_is_no_reference(
    change: Callable[[ir.Model], None], graph: Path, head: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(_changed(graph, tmp_path / "copy", change))
    own = OwnStates(load_artifact(head), checkpoint)
    with pytest.raises(BackendError, match=r"changed\.onnx: ONNX Runtime cannot run the file"):
        own.scores(lambda stage, done, total: None)


def test_the_rows_of_the_embedding_are_those_that_token_ids_pick_from(
    graph: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(graph, tmp_path / "lies"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    assert load_checkpoint(copy).vocab_size == VOCABULARY
    one = _changed(graph, tmp_path / "copy", _of_one_token)
    assert load_checkpoint(one).vocab_size == 1


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a BERT as model.onnx, and of its head; do not change them."""
    spec = BackboneSpec("bert", {"num_hidden_layers": 2})
    backbone = make_backbone(tmp_path_factory.mktemp("encoder"), spec)
    graph = export_onnx(backbone, tmp_path_factory.mktemp("graph") / "onnx")
    return graph, make_artifact(tmp_path_factory.mktemp("head"), backbone)


def _configured(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def _sees_padding(model: ir.Model) -> None:
    """Let a mask of ones stand for the input, whose shape alone is read."""
    graph = model.graph
    (mask,) = [value for value in graph.inputs if value.name == "attention_mask"]
    one = ir.val("one", const_value=ir.tensor([1], dtype=mask.dtype, name="one"))
    graph.initializers["one"] = one
    shape = ir.node("Shape", [mask])
    ones = ir.node("Expand", [one, shape.outputs[0]])
    shape.outputs[0].name, ones.outputs[0].name = "shape_of_mask", "ones"
    mask.replace_all_uses_with(ones.outputs[0])
    shape.replace_input_with(0, mask)
    graph.insert_before(graph[0], (shape, ones))


def _without_mask(model: ir.Model) -> None:
    """Let the graph have token ids as its only input."""
    _sees_padding(model)
    ids, mask = model.graph.inputs
    mask.replace_all_uses_with(ids)
    model.graph.inputs.remove(mask)


@pytest.mark.parametrize("change", [_sees_padding, _without_mask])
def test_an_encoder_that_reads_padding_as_text_is_refused(
    change: Callable[[ir.Model], None], encoder: tuple[Path, Path], tmp_path: Path
) -> None:
    graph, head = encoder
    changed = _changed(graph, tmp_path / "copy", change)
    with pytest.raises(CheckpointError, match=r"does not depend on an input 'attention_mask'"):
        export_bundle(load_artifact(head), load_checkpoint(changed), tmp_path / "x")


def test_scores_that_padding_changes_drift(encoder: tuple[Path, Path], tmp_path: Path) -> None:
    """As in a graph whose config calls it causal, which it is not."""
    graph, head = encoder
    changed = _changed(graph, tmp_path / "copy", _sees_padding)
    _configured(changed.parent, architectures=["BertForCausalLM"])
    artifact, checkpoint = load_artifact(head), load_checkpoint(changed)
    reference = OwnStates(artifact, checkpoint).scores
    with pytest.raises(BundleError, match="texts in a batch, padded, are up to"):
        export_bundle(artifact, checkpoint, tmp_path / "x", reference=reference)
    report = export_bundle(
        artifact, checkpoint, tmp_path / "x", reference=reference, allow_drift=True
    ).verification
    assert report.status == "drifted"
    assert report.max_difference is not None
    assert report.max_difference < 1e-4 < (report.batch_max_difference or 0)


def test_position_ids_that_do_not_count_from_0_are_refused(
    encoder: tuple[Path, Path], tmp_path: Path
) -> None:
    graph, head = encoder
    changed = _changed(graph, tmp_path / "copy", lambda m: _odd_input(m, "position_ids"))
    artifact = load_artifact(head)
    export_bundle(artifact, load_checkpoint(changed), tmp_path / "bert")
    _configured(changed.parent, model_type="roberta", pad_token_id=1)
    with pytest.raises(CheckpointError, match="a roberta does not count positions from 0"):
        export_bundle(artifact, load_checkpoint(changed), tmp_path / "roberta")
    positions = artifact.max_length + 1
    _configured(changed.parent, max_position_embeddings=positions)
    with pytest.raises(CheckpointError, match=f"{positions} positions of the config less 2"):
        export_bundle(artifact, load_checkpoint(changed), tmp_path / "short")
