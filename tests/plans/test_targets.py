"""Each target's graph holds what the target takes, and scores as the float32 bundle does."""

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import pytest

import backbones
from guards import load_guard
from siren_export.passes.tensorrt10 import check_operators
from siren_export.verify.reference import Reference
from siren_export.verify.texts import TEXTS as VERIFIED
from siren_runtime.bundle.reader import Bundle
from siren_runtime.errors import InputError
from texts import TEXTS

FAMILIES = (*backbones.FAMILIES, "bert-gelu-new")
DECODERS = {"stream", "head"}  # graphs that encoders have not
BOUND = {"fp32": 1e-4, "fp16": 5e-3}
POOLINGS = ("residual_mean", "mlp_mean")


def scores(bundle: Bundle) -> np.ndarray:
    with load_guard(bundle.path, backend="cpu", threads=1) as guard:
        return np.array([result.score for result in guard.score_batch(TEXTS)])


def model(bundle: Bundle, graph: str) -> onnx.ModelProto:
    return onnx.load(str(bundle.path / f"{graph}.onnx"), load_external_data=False)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_tensorrt10_scores_as_float32_with_operators_of_its_published_list(export, name, pooling):
    expected = scores(export(name, pooling=pooling))
    bundle = export(name, pooling=pooling, target="tensorrt10")
    graphs = {n: spec for n, spec in bundle.manifest.graphs.items() if not n.startswith("explain.")}
    assert set(graphs) == {"score"} | (DECODERS if name in backbones.DECODERS else set())
    for spec in graphs.values():
        check_operators(bundle.path / spec.file)
        assert spec.opset == 20
        onnx.checker.check_model(str(bundle.path / spec.file), full_check=True)
    np.testing.assert_allclose(scores(bundle), expected, rtol=0, atol=BOUND["fp32"])


@pytest.mark.parametrize(("name", "pooling"), zip(FAMILIES, itertools.cycle(POOLINGS)))
def test_tensorrt10_holds_operators_of_its_published_list_in_every_precision(export, name, pooling):
    for precision in ("fp16", "bf16", "fp8", "int8"):
        options = {"precision": precision, "calibration": TEXTS[:2]}
        bundle = export(name, pooling=pooling, target="tensorrt10", **options)
        for graph, spec in bundle.manifest.graphs.items():
            if not graph.startswith("explain."):  # which run on the CPU
                check_operators(bundle.path / spec.file)


def renamed(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Softmax").op_type = "Attention"


def retyped(graph: onnx.GraphProto) -> None:
    cast = next(node for node in graph.node if node.op_type == "Cast")
    cast.attribute[0].i = onnx.TensorProto.DOUBLE


def computed_axes(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "ReduceMean")
    graph.node.insert(0, onnx.helper.make_node("Identity", [node.input[1]], ["axes"], "axes"))
    node.input[1] = "axes"


def shifted(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    zero = next(tensor for tensor in graph.initializer if tensor.name == node.input[2])
    zero.CopyFrom(onnx.helper.make_tensor(zero.name, onnx.TensorProto.INT8, [], [3]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (renamed, r"node 'layers\.0/self_attn/.*\(Attention\) is not an operator that it knows"),
        (retyped, r"\(\w+\) has an input of type DOUBLE"),
        (computed_axes, r"\(ReduceMean\) has an input 'axes' that is not constant"),
        (shifted, r"node 'layers\.0/.*\(QuantizeLinear\) has a zero point .* that is not 0"),
    ],
)
def test_a_node_that_tensorrt10_does_not_take_is_refused_by_its_name(
    export, damage: Callable[[onnx.GraphProto], None], message
):
    bundle = export("qwen3", precision="int8", target="tensorrt10", calibration=TEXTS[:2])
    graph = model(bundle, "score")
    damage(graph.graph)
    path = bundle.path / "score.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(InputError, match=message):
        check_operators(path)


def test_another_opset_is_no_tensorrt10_graph(export):
    path = export("bert", target="tensorrt").path / "score.onnx"
    with pytest.raises(InputError, match=r"score\.onnx: .*opsets .* expected 20"):
        check_operators(path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "tensorrt10"])
@pytest.mark.parametrize("name", ["llama-multi-head", "qwen3-attention-bias", "bert"])
def test_every_target_scores_within_its_precisions_bound(export, name, target, precision):
    expected = scores(export(name))
    found = scores(export(name, target=target, precision=precision))
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND[precision])


@pytest.mark.parametrize(("name", "target"), [("qwen3", "tensorrt"), ("bert", "tensorrt10")])
def test_bfloat16_is_verified_with_every_result_rounded(export, name, target):
    float32 = export(name)
    guard = load_guard(float32.path, backend="cpu", threads=1)
    expected = [guard.score(text).score for text in VERIFIED]
    reference = Reference("float32", head="", texts="", scores=expected)

    def report(precision):
        options = {"reference": lambda advance: reference, "allow_drift": True}
        return export(name, target=target, precision=precision, **options).manifest.verification

    rounded, half = report("bf16"), report("fp16")
    assert rounded.status == "passed"
    assert "no engine was run" in rounded.reason
    assert half.reason is None
    # bfloat16 has three bits less: eight times the error, had every rounding been independent.
    assert 3 * half.mean_difference < rounded.mean_difference < 30 * half.mean_difference


def test_float16_keeps_attention_for_tensorrts_own_kernel_and_float32_has_none(export):
    def operators(precision):
        bundle = export("qwen3", target="tensorrt", precision=precision)
        return {node.op_type for node in model(bundle, "score").graph.node}

    assert "Attention" in operators("fp16")
    assert "Attention" not in operators("fp32")


def test_nodes_of_a_decomposed_operator_still_name_their_layer(export):
    names = [node.name for node in model(export("qwen3", target="tensorrt10"), "score").graph.node]
    assert "layers.3/self_attn/Attention/Softmax" in names
    assert len(set(names)) == len(names)


def test_a_target_is_recorded_in_the_manifest(export):
    assert export("bert", target="tensorrt10").manifest.target == "tensorrt10"
