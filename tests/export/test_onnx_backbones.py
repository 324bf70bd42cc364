"""A graph that somebody else wrote gives the scores of its model, or is refused by name."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from onnxruntime.quantization import quantize_dynamic

from backbones import BackboneSpec
from generators import make_generator, need_genai
from guards import load_guard
from models import make_artifact, make_backbone, make_labels
from onnx_backbones import export_onnx
from siren_command import siren
from siren_export.export import export_bundle
from siren_export.heads.registry import load_artifact
from siren_export.heads.together import together
from siren_export.sources.checkpoint import load_checkpoint
from siren_export.verify.own_states import OwnStates
from siren_export.verify.reference import LlmSiren
from siren_runtime.errors import ArtifactError, CheckpointError, InputError
from texts import TEXTS

_TWO = {"num_hidden_layers": 2}
SPECS = {
    "llama": BackboneSpec("llama", _TWO),
    "gemma2": BackboneSpec("gemma2", {**_TWO, "layer_types": None}),
    "bert": BackboneSpec("bert", _TWO),
    "qwen3_moe": BackboneSpec("qwen3_moe", {"num_hidden_layers": 1}),
    "gpt_oss": BackboneSpec("gpt_oss", _TWO),
}
Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return the folder of the backbone of that name in SPECS, in safetensors."""

    @functools.cache
    def make(name: str) -> Path:
        return make_backbone(tmp_path_factory.mktemp(name), SPECS[name])

    return make


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, backbone: Make) -> Make:
    """Return the folder of the same backbone as model.onnx; do not change it."""

    @functools.cache
    def make(name: str) -> Path:
        return export_onnx(backbone(name), tmp_path_factory.mktemp(name) / "onnx")

    return make


@pytest.fixture(scope="module")
def int4_generator(tmp_path_factory: pytest.TempPathFactory, backbone: Make) -> Path:
    need_genai()
    copy = tmp_path_factory.mktemp("source") / "llama"
    shutil.copytree(backbone("llama"), copy)
    return make_generator(copy, tmp_path_factory.mktemp("int4") / "genai", "int4", "cpu")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, backbone: Make) -> Callable[..., Path]:
    """Return a head's folder, by its backbone and options of make_artifact."""

    @functools.cache
    def make(name: str, **options: Any) -> Path:
        return make_artifact(tmp_path_factory.mktemp("head"), backbone(name), **options)

    return make


def _scores(bundle: Path) -> list[float]:
    """Of a batch, so that texts are padded."""
    return [result.score for result in load_guard(bundle, threads=1).score_batch(TEXTS)]


@pytest.mark.parametrize("layers", [(0,), (0, 1)])
@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_an_authored_family_scores_as_its_own_graph_does(
    name: str,
    pooling: str,
    layers: tuple[int, ...],
    graph: Make,
    backbone: Make,
    head: Callable[..., Path],
    tmp_path: Path,
) -> None:
    artifact = load_artifact(head(name, pooling=pooling, layers=layers))
    export_bundle(artifact, load_checkpoint(backbone(name)), tmp_path / "authored", stream=False)
    manifest = export_bundle(artifact, load_checkpoint(graph(name)), tmp_path / "taken")
    assert manifest.precision == "fp32"
    assert manifest.backbone.blocks_kept == layers[-1] + 1
    expected = _scores(tmp_path / "authored")
    assert max(expected) - min(expected) > 0.1
    assert _scores(tmp_path / "taken") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_mixture_of_experts_scores_as_llm_siren_does(
    name: str, graph: Make, backbone: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    artifact = load_artifact(head(name))
    weights = load_checkpoint(backbone(name))
    with pytest.raises(CheckpointError, match="mixture of experts"):
        export_bundle(artifact, weights, tmp_path / "authored")
    reference = LlmSiren(artifact, weights).scores
    checkpoint = load_checkpoint(graph(name))
    manifest = export_bundle(artifact, checkpoint, tmp_path / "taken", reference=reference)
    assert manifest.verification.status == "passed"
    assert str(manifest.verification.reference).startswith("llm-siren")
    alone = [load_guard(tmp_path / "taken", threads=1).score(text).score for text in TEXTS]
    assert _scores(tmp_path / "taken") == pytest.approx(alone, abs=1e-4)
    mlp = load_artifact(head(name, pooling="mlp_mean"))
    with pytest.raises(CheckpointError, match="one product with a matrix"):
        export_bundle(mlp, checkpoint, tmp_path / "mlp")


def test_a_generator_is_taken_in_its_own_precision(
    int4_generator: Path, backbone: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    labels = make_labels(tmp_path / "labels", backbone("llama"), layers=[0])
    heads = {"harm": load_artifact(head("llama")), "kinds": load_artifact(labels)}
    artifact, checkpoint = together(heads), load_checkpoint(int4_generator)
    reference = OwnStates(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=reference)
    assert manifest.precision == "int4"
    report = manifest.verification
    assert report.status == "passed"
    assert str(report.reference).startswith("the file's own states")
    assert report.max_difference is not None
    assert report.max_difference < 1e-4  # the matrices are the same, only the form is another
    for precision in ("fp32", "int8"):
        with pytest.raises(InputError, match="quantized already"):
            export_bundle(artifact, checkpoint, tmp_path / "x", precision=precision)


def test_a_file_that_was_quantized_before_is_taken(
    graph: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(graph("llama"), tmp_path / "copy"))
    quantize_dynamic(graph("llama") / "model.onnx", copy / "model.onnx")
    artifact, checkpoint = load_artifact(head("llama")), load_checkpoint(copy)
    reference = OwnStates(artifact, checkpoint).scores
    manifest = export_bundle(artifact, checkpoint, tmp_path / "bundle", reference=reference)
    assert manifest.precision == "int8"
    assert not manifest.saturation_free
    assert manifest.verification.status == "passed"


def test_a_graph_is_not_rewritten(graph: Make, head: Callable[..., Path], tmp_path: Path) -> None:
    inputs = load_artifact(head("llama")), load_checkpoint(graph("llama")), tmp_path / "x"
    with pytest.raises(InputError, match="taken as it is"):
        export_bundle(*inputs, precision="int8")
    with pytest.raises(InputError, match="for --target tensorrt"):
        export_bundle(*inputs, target="tensorrt")


def test_the_command_verifies_with_the_backbone_that_the_head_names(
    graph: Make, backbone: Make, head: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["export", head("llama"), "--backbone", graph("llama")]
    result = siren(*arguments, "-o", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert "passed" in result.stderr
    assert "llm-siren" in result.stderr
    result = siren(*arguments, "-o", tmp_path / "auto", "--precision", "auto")
    assert result.exit_code == 2
    result = siren(
        *arguments[:3], backbone("llama"), "--reference-backbone", "x", "-o", tmp_path / "y"
    )
    assert result.exit_code == 2


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


def _odd_input(model: ir.Model) -> None:
    """Let the graph read another input, beside the token ids."""
    graph = model.graph
    (ids,) = [value for value in graph.inputs if value.name == "input_ids"]
    odd = ir.val("bias_ids", dtype=ids.dtype, shape=ids.shape)
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
    graph: Make,
    head: Callable[..., Path],
    tmp_path: Path,
) -> None:
    changed = _changed(graph("llama"), tmp_path / "copy", change)
    with pytest.raises(CheckpointError, match=looked_for):
        export_bundle(load_artifact(head("llama")), load_checkpoint(changed), tmp_path / "x")


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
    graph: Make,
    head: Callable[..., Path],
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(graph("llama"), tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **keys}))
    with pytest.raises(error, match=message):
        export_bundle(load_artifact(head("llama")), load_checkpoint(copy), tmp_path / "x")


def test_a_folder_of_several_graphs_asks_for_one(graph: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(graph("llama"), tmp_path / "copy"))
    shutil.copyfile(copy / "model.onnx", copy / "decoder_with_past_model.onnx")
    assert load_checkpoint(copy).onnx is not None
    (copy / "model.onnx").rename(copy / "decoder_model.onnx")
    with pytest.raises(CheckpointError, match="name the file"):
        load_checkpoint(copy)
    assert load_checkpoint(copy / "decoder_model.onnx").onnx is not None


def test_a_graph_may_not_reach_out_of_its_folder(graph: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(graph("llama"), tmp_path / "copy"))
    data = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").write_bytes(data.replace(b"model.onnx.data", b"../del.onnx.dat"))
    with pytest.raises(CheckpointError, match=r"\.\./del"):
        load_checkpoint(copy)
