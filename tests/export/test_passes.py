"""What the int8 and int4 passes rewrite, and what they leave."""

import functools
import itertools
import math

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import backbones
from models import make_artifact
from siren_export.families.registry import parse_config
from siren_export.graph.builder import FLOAT, GraphBuilder, GuardGraph, Output
from siren_export.graph.weights import from_array
from siren_export.guard.score import author_score
from siren_export.heads.base import Artifact
from siren_export.heads.registry import load_artifact
from siren_export.passes.decompose_attention import decompose_attention
from siren_export.passes.edit import CONTRIB, linears
from siren_export.passes.eight_bits import round_channels
from siren_export.passes.onnxruntime_attention import fuse_long_attention
from siren_export.passes.table import lower, row_of
from siren_export.sources.checkpoint import Checkpoint, load_checkpoint

TARGETS = ("onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt10")
FAMILIES = (*backbones.FAMILIES, "llama-mlp-bias")
ROLES = ("query", "key", "value")


@pytest.fixture(scope="module")
def author(tmp_path_factory, backbone_folder):
    """Return a function: backbone name, precision -> the graph before passes."""

    @functools.cache
    def inputs(name: str) -> tuple[Artifact, Checkpoint]:
        head = make_artifact(tmp_path_factory.mktemp(name) / "head", backbone_folder(name))
        return load_artifact(head), load_checkpoint(backbone_folder(name))

    def run(name: str, precision: str) -> GuardGraph:
        artifact, checkpoint = inputs(name)
        config = parse_config(checkpoint.config, checkpoint.source)
        compute = row_of("onnxruntime", precision).compute
        return author_score(artifact, config, checkpoint.weights, compute)

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
    lower(graph, row_of("onnxruntime", precision))
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
    joined = sum(graph.roles.get(name) in ("key", "value") for name in before)  # to their queries
    head = {n: w for n, w in graph.weights.items() if n.startswith("head/")}
    lower(graph, row_of("onnxruntime", precision))
    products = len(before) - (joined if precision == "int8" else 0)
    assert [n.op_type for n in graph.model.graph].count(operator) == products > 0
    assert not matrices(graph)
    assert {n: w for n, w in graph.weights.items() if n.startswith("head/")} == head
    assert {w.dtype.name for w in head.values()} == {"FLOAT"}
    assert set(graph.weights) <= set(graph.model.graph.initializers)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_weight_is_as_large_as_it_says_and_is_read_by_a_node(author, precision):
    graph = author("llama-mlp-bias", precision)
    lower(graph, row_of("onnxruntime", precision))
    for name, weight in graph.weights.items():
        assert graph.model.graph.initializers[name].uses(), name
        blocks = list(weight.blocks())
        assert sum(block.nbytes for block in blocks) == weight.nbytes, name
        assert {block.dtype for block in blocks} == {weight.dtype.numpy()}, name


def test_scales_are_the_same_whether_or_not_the_values_were_written_first(author):
    for precision in ("int8", "int4"):
        graphs = [author("qwen2", precision) for _ in range(2)]
        for graph in graphs:
            lower(graph, row_of("onnxruntime", precision))
        name = next(n for n in graphs[0].weights if n.endswith(f".{precision}") and "/" in n)
        scale = name.removesuffix(precision) + "scale"
        values_of(graphs[0], name)
        assert np.array_equal(values_of(graphs[0], scale), values_of(graphs[1], scale))


def test_int8_weights_are_within_half_a_step_of_the_matrix(author):
    source, graph = author("qwen3", "int8"), author("qwen3", "int8")
    lower(graph, row_of("onnxruntime", "int8"))
    name = "layers.1/mlp/down_proj/weight"
    matrix = values_of(source, name)
    values, scale = values_of(graph, f"{name}.int8"), values_of(graph, f"{name}.scale")
    assert values.dtype == np.int8
    largest = sum(np.maximum(np.abs(values[i::2].astype(int)), 0) for i in (0, 1)).max(axis=0)
    assert (largest >= 127).all()  # the range is used: a pair or a weight of each channel is at it
    assert (np.abs(values).max(axis=0) > 64).all()
    assert (np.abs(values * scale - matrix) <= 0.5001 * scale).all()


def test_int4_weights_are_within_half_a_step_of_the_matrix_but_at_the_ends_of_the_range(author):
    source, graph = author("qwen3", "int4"), author("qwen3", "int4")
    lower(graph, row_of("onnxruntime", "int4"))
    name = "layers.1/mlp/down_proj/weight"  # 96 inputs, three blocks
    matrix = values_of(source, name)
    packed, scale = values_of(graph, f"{name}.int4"), values_of(graph, f"{name}.scale")
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1, 32)
    restored = (values.astype(np.float32) - 8) * scale[:, :, None]
    step = np.repeat(np.abs(scale), 32, axis=1)
    steps = np.abs(restored.reshape(len(packed), -1) - matrix.T) / step
    at_the_end = np.isin(values, (0, 15)).reshape(steps.shape)  # there the range may cut a weight
    assert steps[~at_the_end].max() <= 0.5001
    assert steps[at_the_end].max() <= 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_channels_and_rows_too_small_for_a_scale_become_zeros(precision):
    """The least float32 above zero, by 127, is zero, which nothing can be divided by."""
    g = GraphBuilder(FLOAT)
    ids = g.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    table, matrix = (np.full(s, 1e-45, np.float32) for s in ((4, 32), (32, 2)))
    matrix[:, 1] = 1
    rows = g.op("Gather", g.weight("table", from_array(table)), ids)
    y = g.linear(rows, "layer", from_array(matrix))
    graph = g.build("test", {"features": Output(y, ["batch", "sequence", 2])})
    lower(graph, row_of("onnxruntime", precision))
    for name, weight in graph.weights.items():
        assert np.isfinite(np.concatenate(list(weight.blocks())).astype(np.float32)).all(), name
    assert not values_of(graph, "table.int8").any()
    if precision == "int8":
        assert not values_of(graph, "layer/weight.int8")[:, 0].any()


def test_embedding_rows_are_within_half_a_step_of_the_table(author):
    source, graph = author("bert", "int8"), author("bert", "int8")
    lower(graph, row_of("onnxruntime", "int8"))
    name = "embeddings/word_embeddings"
    table = values_of(source, name)
    values, scale = values_of(graph, f"{name}.int8"), values_of(graph, f"{name}.scale")
    assert (np.abs(values * scale - table) <= 0.5001 * scale).all()


@pytest.mark.parametrize("name", backbones.FAMILIES)
def test_of_all_tables_that_of_the_tokens_alone_is_in_8_bits(author, name):
    graph = author(name, "int8")
    (tokens,) = (
        str(node.inputs[0].name)
        for node in graph.model.graph
        if node.op_type == "Gather" and node.inputs[1].name == "input_ids"
    )
    lower(graph, row_of("onnxruntime", "int8"))
    integers = {n for n, w in graph.weights.items() if w.dtype == ir.DataType.INT8}
    assert {name for name in integers if "/weight." not in name} == {f"{tokens}.int8"}


def test_products_of_one_input_share_its_quantization(author):
    graph = author("qwen3", "int8")
    lower(graph, row_of("onnxruntime", "int8"))
    operators = [node.op_type for node in graph.model.graph]
    # q/k/v, o, gate/up and down: four inputs in each of the four blocks, and five products
    assert operators.count("QuantizeLinear") == 4 * 4
    assert operators.count("MatMulIntegerToFloat") == 5 * 4


@pytest.mark.parametrize("kept", ["", "k", "qk"])
@pytest.mark.parametrize("name", ["qwen3", "bert", "qwen2"])
def test_queries_keys_and_values_are_the_columns_of_one_product(author, name, kept):
    """Their integers are those that each has by itself. What is kept in float32 stands apart."""
    graph = author(name, "int8")
    block = [linear for linear in linears(graph) if ".0/" in linear.name]
    first = {role[0]: linear for linear in block for role in ROLES if linear.role == role}
    matrices = {part: values_of(graph, linear.matrix_name) for part, linear in first.items()}
    lower(graph, row_of("onnxruntime", "int8"), {first[part].matrix_name for part in kept})
    for part, linear in first.items():
        assert (linear.matrix_name in graph.weights) == (part in kept)
    rounded = [part for part in "qkv" if part not in kept]
    scope, _, _ = first["q"].name.rpartition("/")
    joined = f"{scope}/" + "+".join(first[part].name.rpartition("/")[2] for part in rounded)
    values, scale = (values_of(graph, f"{joined}/weight.{kind}") for kind in ("int8", "scale"))
    alone = [round_channels(matrices[part], None) for part in rounded]
    assert np.array_equal(values, np.concatenate([integers for integers, _ in alone], axis=1))
    assert np.array_equal(scale, np.concatenate([scales for _, scales in alone]))


def opened(graph: GuardGraph) -> onnxruntime.InferenceSession:
    """A session of the graph with its weights in it."""
    for name, weight in graph.weights.items():
        values = np.concatenate(list(weight.blocks())).reshape(weight.shape)
        graph.model.graph.initializers[name].const_value = ir.tensor(values, name=name)
    model = ir.to_proto(graph.model).SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "name",
    ["qwen3", "llama-mlp-bias", "granite-biases-4", "bert", "gemma3", "modernbert", "roberta"],
)
def test_long_attention_gives_what_attention_gives(author, name):
    """At lengths around the choice, alone, in batches, and with padding."""
    random = np.random.default_rng(0)
    graphs = [author(name, "fp32") for _ in range(2)]
    fuse_long_attention(graphs[1], long=16)
    graphs[1].model.graph.opset_imports[CONTRIB] = 1
    sessions = [opened(graph) for graph in graphs]
    for lengths in ((3,), (15,), (16,), (40,), (40, 40), (40, 9)):
        ids = random.integers(5, 60, size=(len(lengths), max(lengths)))
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        feed = {"input_ids": ids, "attention_mask": mask}
        (plain,), (fused,) = (session.run(["features"], feed) for session in sessions)
        np.testing.assert_allclose(fused, plain, rtol=0, atol=1e-5, err_msg=str(lengths))


def test_a_decoders_attention_of_heads_that_the_fused_operator_does_not_take_is_not_fused(author):
    """It takes heads of whole eights of channels; these have 12."""
    graph = author("granite-biases-4", "fp32")
    before = [node.op_type for node in graph.model.graph]
    fuse_long_attention(graph, long=16)
    assert [node.op_type for node in graph.model.graph] == before


def _look_through_a_window(graph: GuardGraph) -> ir.Node:
    """Give a decoder's second attention a mask of visible keys in the place of causality."""
    node = [n for n in graph.model.graph if n.op_type == "Attention"][1]
    node.resize_inputs(4)
    node.replace_input_with(3, graph.model.graph.inputs[1])
    node.attributes.pop("is_causal")
    return node


def test_a_decoders_attention_through_a_window_is_not_fused(author):
    """The fused operator sees all keys before a token, and would drop the window."""
    graph = author("qwen3", "fp32")
    windowed = _look_through_a_window(graph)
    fuse_long_attention(graph, long=16)
    left = [n for n in graph.model.graph if n.op_type == "Attention"]
    assert left == [windowed]
    assert sum(n.op_type == "If" for n in graph.model.graph) == 3


@pytest.mark.parametrize(
    ("change", "rewrite"),
    [
        *itertools.product(
            ("both", "neither", "other"), (fuse_long_attention, decompose_attention)
        ),
        ("softcap", fuse_long_attention),
    ],
)
def test_attention_that_a_pass_would_change_is_refused(author, change, rewrite):
    graph = author("qwen3", "fp32")
    node = next(n for n in graph.model.graph if n.op_type == "Attention")
    if change == "both":
        node.resize_inputs(4)
        node.replace_input_with(3, graph.model.graph.inputs[1])
    elif change == "neither":
        node.attributes.pop("is_causal")
    elif change == "other":
        node.attributes.add(ir.AttrInt64("softmax_precision", 1))
    else:
        node.attributes.add(ir.AttrFloat32("softcap", 30.0))
    with pytest.raises(AssertionError, match="Attention"):
        rewrite(graph)


@pytest.mark.parametrize("target", TARGETS)
def test_no_target_is_given_scores_that_are_capped_inside_an_operator(author, target):
    """Revisions of the standard differ in whether the mask comes before the cap."""
    graph = author("gemma2", "fp32")
    assert sum("softcap" in node.attributes for node in graph.model.graph) == 4
    lower(graph, row_of(target, "fp32"))
    assert not any("softcap" in node.attributes for node in graph.model.graph)
    bent = [node for node in graph.model.graph if node.op_type == "Tanh"]
    assert sum("/self_attn/" in str(node.name) for node in bent) == 4


def test_what_gelu_gives_is_quantized_from_its_least_value_up(author):
    """The product is near the float one's, and nearer than with a sign bit."""
    graph, plain = author("bert", "int8"), author("bert", "int8")
    lower(graph, row_of("onnxruntime", "int8"))
    products = [n for n in graph.model.graph if n.op_type == "MatMulIntegerToFloat"]
    zero_points = {n.name: int(n.inputs[4].const_value.numpy()) for n in products}
    from_gelu = {name: zero for name, zero in zero_points.items() if "/mlp/output/" in name}
    assert set(from_gelu.values()) == {0}
    assert {zero for name, zero in zero_points.items() if name not in from_gelu} == {128}
    name = "layer.0/mlp/output"
    matrix, scale = f"{name}/weight.int8", f"{name}/weight.scale"
    sums = (values_of(graph, matrix).astype(np.float64) * values_of(graph, scale)).sum(axis=0)
    expected = values_of(plain, f"{name}/bias") - 0.1701 * sums
    np.testing.assert_allclose(values_of(graph, f"{name}/weight.bias"), expected, atol=1e-5)


@pytest.mark.parametrize("gelu", [False, True])
def test_a_token_of_zeros_gives_the_bias(gelu):
    """Its step may be zero: the division by it must not reach the result."""
    g = GraphBuilder(FLOAT)
    x = g.input("x", FLOAT, ["batch", "sequence", 8])
    random = np.random.default_rng(0)
    matrix, bias = (random.normal(size=s).astype(np.float32) for s in ((8, 4), (4,)))
    z = g.op("Gelu", x, approximate="none") if gelu else g.op("Neg", g.op("Neg", x))
    y = g.linear(z, "layer", from_array(matrix), from_array(bias))
    graph = g.build("test", {"features": Output(y, ["batch", "sequence", 4])})
    lower(graph, row_of("onnxruntime", "int8"))
    for name, weight in graph.weights.items():
        values = np.concatenate(list(weight.blocks())).reshape(weight.shape)
        graph.model.graph.initializers[name].const_value = ir.tensor(values, name=name)
    session = onnxruntime.InferenceSession(ir.to_proto(graph.model).SerializeToString())
    tokens = np.zeros((1, 2, 8), np.float32)
    tokens[0, 1] = random.normal(size=8)
    found = session.run(None, {"x": tokens})[0][0]
    np.testing.assert_allclose(found[0], bias, rtol=0, atol=1e-2 if gelu else 1e-6)
    active = _gelu(tokens[0, 1]) if gelu else tokens[0, 1]
    np.testing.assert_allclose(found[1], active @ matrix + bias, rtol=0, atol=0.1)


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.array([v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x], np.float32)
