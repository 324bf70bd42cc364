"""What the int8 and int4 passes rewrite, and what they leave."""

import numpy as np
import pytest

from models import make_artifact
from siren_export.artifact import load_artifact
from siren_export.checkpoint import load_checkpoint
from siren_export.config import parse_config
from siren_export.graph.builder import GuardGraph
from siren_export.graph.guard import author_guard
from siren_export.passes.targets import lower

FAMILIES = ("qwen3", "qwen2", "llama-mlp-bias", "mistral", "bert")


@pytest.fixture
def author(tmp_path, backbone_folder):
    """Return a function: backbone name, precision -> the graph before passes."""

    def run(name: str, precision: str) -> GuardGraph:
        backbone = backbone_folder(name)
        artifact = load_artifact(make_artifact(tmp_path / "head", backbone))
        checkpoint = load_checkpoint(backbone)
        config = parse_config(checkpoint.config, checkpoint.source)
        return author_guard(artifact, checkpoint, config, precision)

    return run


def values_of(graph: GuardGraph, name: str) -> np.ndarray:
    return np.concatenate(list(graph.weights[name].blocks()))


def matrices(graph: GuardGraph) -> list[str]:
    """The backbone's matrices, by the names they were authored with."""
    return [
        name
        for name, weight in graph.weights.items()
        if len(weight.shape) == 2 and name.endswith("/weight") and not name.startswith("head/")
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_precisions_keep_the_authored_graph(author, precision):
    graph = author("qwen3", precision)
    before = [node.name for node in graph.model.graph]
    lower(graph, precision, "onnxruntime")
    assert [node.name for node in graph.model.graph] == before
    assert graph.model.opset_imports == {"": 23}


@pytest.mark.parametrize(
    ("precision", "operator"), [("int8", "MatMulIntegerToFloat"), ("int4", "MatMulNBits")]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_of_the_backbone_is_quantized_and_the_head_is_not(
    author, name, precision, operator
):
    graph = author(name, precision)
    before = matrices(graph)
    head = {n: w for n, w in graph.weights.items() if n.startswith("head/")}
    lower(graph, precision, "onnxruntime")
    assert [n.op_type for n in graph.model.graph].count(operator) == len(before) > 0
    assert not matrices(graph)
    assert {n: w for n, w in graph.weights.items() if n.startswith("head/")} == head
    assert {w.dtype.name for w in head.values()} == {"FLOAT"}
    assert set(graph.weights) <= set(graph.model.graph.initializers)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_weight_is_as_large_as_it_says_and_is_read_by_a_node(author, precision):
    graph = author("llama-mlp-bias", precision)
    lower(graph, precision, "onnxruntime")
    for name, weight in graph.weights.items():
        assert graph.model.graph.initializers[name].uses(), name
        blocks = list(weight.blocks())
        assert sum(block.nbytes for block in blocks) == weight.nbytes, name
        assert {block.dtype for block in blocks} == {weight.dtype.numpy()}, name


def test_scales_are_the_same_whether_or_not_the_values_were_written_first(author):
    for precision in ("int8", "int4"):
        graphs = [author("qwen2", precision) for _ in range(2)]
        for graph in graphs:
            lower(graph, precision, "onnxruntime")
        name = next(n for n in graphs[0].weights if n.endswith(f".{precision}") and "/" in n)
        scale = name.removesuffix(precision) + "scale"
        values_of(graphs[0], name)
        assert np.array_equal(values_of(graphs[0], scale), values_of(graphs[1], scale))


def test_int8_weights_are_within_half_a_step_of_the_matrix(author):
    source, graph = author("qwen3", "int8"), author("qwen3", "int8")
    lower(graph, "int8", "onnxruntime")
    name = "layers.1/mlp/down_proj/weight"
    matrix = values_of(source, name)
    values, scale = values_of(graph, f"{name}.int8"), values_of(graph, f"{name}.scale")
    assert values.dtype == np.int8
    assert (np.abs(values).max(axis=0) == 127).all()  # each channel uses its whole range
    assert (np.abs(values * scale - matrix) <= 0.5001 * scale).all()


def test_int4_weights_are_within_a_step_of_the_matrix(author):
    source, graph = author("qwen3", "int4"), author("qwen3", "int4")
    lower(graph, "int4", "onnxruntime")
    name = "layers.1/mlp/down_proj/weight"  # 96 inputs, three blocks
    matrix = values_of(source, name)
    packed, scale = values_of(graph, f"{name}.int4"), values_of(graph, f"{name}.scale")
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1, 32)
    restored = (values.astype(np.float32) - 8) * scale[:, :, None]
    step = np.repeat(np.abs(scale), 32, axis=1)
    assert (np.abs(restored.reshape(len(packed), -1) - matrix.T) <= 1.0001 * step).all()


def test_embedding_rows_are_within_half_a_step_of_the_table(author):
    source, graph = author("bert", "int8"), author("bert", "int8")
    lower(graph, "int8", "onnxruntime")
    name = "embeddings/word_embeddings"
    table = values_of(source, name)
    values, scale = values_of(graph, f"{name}.int8"), values_of(graph, f"{name}.scale")
    assert (np.abs(values * scale - table) <= 0.5001 * scale).all()


def test_products_of_one_input_share_its_quantization(author):
    graph = author("qwen3", "int8")
    lower(graph, "int8", "onnxruntime")
    operators = [node.op_type for node in graph.model.graph]
    # q/k/v, o, gate/up and down: four inputs and seven products in each of the four blocks
    assert operators.count("QuantizeLinear") == 4 * 4
    assert operators.count("MatMulIntegerToFloat") == 7 * 4
