"""What calibration changes in 8 and 4 bits: evened activations, and matrices that stay wider."""

from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from siren_export.graph.builder import FLOAT, GraphBuilder, GuardGraph, Output
from siren_export.graph.weights import from_array
from siren_export.passes.calibration import Inputs
from siren_export.passes.eight_bits import round_channels
from siren_export.passes.four_bits import Grid
from siren_export.passes.options import Options
from siren_export.passes.sensitive import harm, sensitive
from siren_export.passes.smoothing import BOTH, WEIGHTS, rescale_inputs
from siren_export.passes.table import lower, row_of

HIDDEN, WIDE, OUTLIER = 64, 96, 17


def _weight(random: np.random.Generator, *shape: int, dtype=np.float32):
    return from_array(random.normal(size=shape).astype(dtype))


def _block(norm: str = "rms", *, tapped: bool = False, compute=FLOAT) -> GuardGraph:
    """A norm whose output has one large channel, and a gated MLP behind it."""
    random = np.random.default_rng(0)
    g = GraphBuilder(compute)
    weight = partial(_weight, random, dtype=compute.numpy())
    x = g.input("x", FLOAT, ["batch", "sequence", HIDDEN])
    scale = np.abs(random.normal(size=HIDDEN)).astype(np.float32)
    scale[OUTLIER] = 60
    with g.scope("norm"):
        parts = [g.weight("weight", from_array(scale))]
        if norm == "layer":
            parts.append(g.weight("bias", _weight(random, HIDDEN)))
        operator = "RMSNormalization" if norm == "rms" else "LayerNormalization"
        y = g.op(operator, x, *parts, epsilon=1e-6, axis=-1)
    narrow = g.to_compute(y)
    gate = g.op("Sigmoid", g.linear(narrow, "gate", weight(HIDDEN, WIDE)))
    up = g.linear(narrow, "up", weight(HIDDEN, WIDE), weight(WIDE))
    z = g.to_float(g.linear(g.op("Mul", gate, up), "down", weight(WIDE, HIDDEN)))
    if tapped:
        z = g.op("Add", z, y)
    return g.build("test", {"features": Output(z, ["batch", "sequence", HIDDEN])})


def _tokens() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, 40, HIDDEN)).astype(np.float32)


def _run(graph: GuardGraph, *outputs: str) -> list[np.ndarray]:
    for name, weight in graph.weights.items():
        values = np.concatenate(list(weight.blocks())).reshape(weight.shape)
        graph.model.graph.initializers[name].const_value = ir.tensor(values, name=name)
    for name in outputs:
        value = next(n.outputs[0] for n in graph.model.graph if n.name == name)
        value.dtype, value.shape = FLOAT, ir.Shape([None] * 3)
        graph.model.graph.outputs.append(value)
    session = onnxruntime.InferenceSession(ir.to_proto(graph.model).SerializeToString())
    return session.run(["features", *outputs], {"x": _tokens()})


def _calibration(norm: str = "rms") -> dict[str, Inputs]:
    inner = "norm/RMSNormalization" if norm == "rms" else "norm/LayerNormalization"
    _, y, z = _run(_block(norm), inner, "Mul")
    inputs = {"gate": y[0], "up": y[0], "down": z[0]}
    return {
        f"{name}/weight": Inputs(np.abs(x).max(axis=0), (x.T @ x)[None], len(x), 1.0)
        for name, x in inputs.items()
    }


def _rescale(graph: GuardGraph, exponent: float = BOTH, norm: str = "rms", **how) -> Options:
    return rescale_inputs(graph, Options(calibration=_calibration(norm)), exponent, **how)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_rescaling_changes_weights_and_nothing_that_the_graph_computes(norm):
    graph, plain = _block(norm), _block(norm)
    before = [node.name for node in graph.model.graph]
    _rescale(graph, norm=norm, divides=True)
    assert [node.name for node in graph.model.graph] == before
    assert set(graph.weights) == set(plain.weights)
    changed = {n for n in graph.weights if not np.array_equal(*_values(n, graph, plain))}
    assert changed >= {"norm/weight", "gate/weight", "up/weight", "up/bias", "down/weight"}
    np.testing.assert_allclose(_run(graph)[0], _run(plain)[0], rtol=1e-3, atol=1e-3)


def _values(name: str, *graphs: GuardGraph) -> list[np.ndarray]:
    return [np.concatenate(list(graph.weights[name].blocks())) for graph in graphs]


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_an_input_that_something_else_reads_is_divided_beside_it(norm):
    graph, plain = _block(norm, tapped=True), _block(norm, tapped=True)
    _rescale(graph, norm=norm, divides=True)
    np.testing.assert_array_equal(*_values("norm/weight", graph, plain))
    for name in ("gate/weight", "down/weight"):
        assert not np.array_equal(*_values(name, graph, plain))
    np.testing.assert_allclose(_run(graph)[0], _run(plain)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tapped", [False, True])
def test_calibrated_int8_is_closer_to_float32_where_one_channel_is_large(tapped):
    expected = _run(_block(tapped=tapped))[0]
    errors = []
    for calibration in (None, _calibration()):
        graph = _block(tapped=tapped)
        lower(graph, row_of("onnxruntime", "int8"), calibration=calibration)
        errors.append(np.linalg.norm(_run(graph)[0] - expected))
    assert errors[1] < 0.5 * errors[0]


def test_where_weights_alone_are_rounded_no_operator_divides_what_something_else_reads():
    graph, plain = _block(tapped=True), _block(tapped=True)
    _rescale(graph, WEIGHTS)
    assert len(graph.model.graph) == len(plain.model.graph)
    np.testing.assert_array_equal(*_values("gate/weight", graph, plain))
    assert not np.array_equal(*_values("down/weight", graph, plain))


def test_in_float16_the_norm_takes_what_its_products_read_through_a_cast():
    graph, plain = (_block(compute=ir.DataType.FLOAT16) for _ in range(2))
    _rescale(graph, WEIGHTS)
    np.testing.assert_allclose(_run(graph)[0], _run(plain)[0], rtol=2e-2, atol=0.5)
    for name in ("norm/weight", "gate/weight", "down/weight"):
        assert not np.array_equal(*_values(name, graph, plain))
        assert len({values.dtype for values in _values(name, graph, plain)}) == 1


def test_the_calibration_is_of_the_inputs_as_they_are_then():
    graph = _block()
    options = _rescale(graph, WEIGHTS)
    _, y, z = _run(graph, "norm/RMSNormalization", "Mul")
    for name, x in {"gate": y[0], "up": y[0], "down": z[0]}.items():
        found = options.moments(f"{name}/weight")()
        assert found is not None
        np.testing.assert_allclose(found[0], x.T @ x, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [("gate/weight", {"up/weight", "up/bias", "down/weight"}), ("up/weight", set())],
)
def test_what_keeps_its_blocks_is_not_rescaled_and_neither_is_what_goes_with_it(kept, expected):
    graph, plain = _block(), _block()
    values = _values(kept, plain)[0]
    _rescale(graph, fixed=lambda w: np.array_equal(np.concatenate(list(w.blocks())), values))
    changed = {n for n in graph.weights if not np.array_equal(*_values(n, graph, plain))}
    assert changed == expected


def test_int4_is_closer_to_float32_where_channels_differ_in_size(monkeypatch):
    expected = _run(_block())[0]
    errors = []
    for exponent in (0.0, WEIGHTS):
        monkeypatch.setattr("siren_export.passes.onnxruntime_int4.WEIGHTS", exponent)
        graph = _block()
        lower(graph, row_of("onnxruntime", "int4"), calibration=_calibration())
        errors.append(np.linalg.norm(_run(graph)[0] - expected))
    assert errors[1] < 0.9 * errors[0]


def _correlated() -> tuple[np.ndarray, np.ndarray]:
    """Inputs [512, 128] that go together, as a layer's do, and a matrix [128, 64]."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(512, 24)) @ random.normal(size=(24, 128))
    return inputs.astype(np.float32), random.normal(size=(128, 64)).astype(np.float32)


def test_moments_round_eight_bits_to_products_closer_to_float32_and_pairs_stay_safe():
    inputs, matrix = _correlated()
    groups = inputs.reshape(512, 2, 64)
    errors = []
    for moments in (None, np.einsum("tgi,tgj->gij", groups, groups)):
        integers, scales = round_channels(matrix, moments)
        pairs = integers.astype(int).reshape(64, 2, 64)
        same_sign = np.sign(pairs[:, 0]) == np.sign(pairs[:, 1])
        assert np.abs(pairs.sum(axis=1))[same_sign].max() <= 128
        assert np.abs(pairs).max() <= 127
        errors.append(np.linalg.norm(inputs @ (integers * scales - matrix)))
    assert errors[1] < 0.6 * errors[0]


def test_moments_round_the_weights_for_tensorrt_rtx_to_products_closer_to_float32():
    inputs, matrix = _correlated()
    errors = []
    for calibration in (None, {"linear/weight": _inputs(inputs, matrix)}):
        g = GraphBuilder(FLOAT)
        x = g.input("x", FLOAT, ["tokens", 128])
        y = g.linear(g.op("Neg", x), "linear", from_array(matrix))
        graph = g.build("test", {"features": Output(y, ["tokens", 64])})
        lower(graph, row_of("tensorrt-rtx", "int8"), calibration=calibration)
        integers, scales = (
            _values(f"linear/weight.{part}", graph)[0].astype(np.float32)
            for part in ("int8", "scale")
        )
        assert np.abs(integers).max() <= 127
        errors.append(np.linalg.norm(inputs @ (integers * scales - matrix)))
    assert errors[1] < 0.6 * errors[0]


def test_dividing_inputs_divides_what_was_measured_of_them():
    inputs, matrix = _correlated()
    factors = np.random.default_rng(1).lognormal(size=128).astype(np.float32)
    found = _inputs(inputs, matrix).divided(factors)
    expected = _inputs(inputs / factors, matrix * factors[:, None])
    np.testing.assert_allclose(found.largest, expected.largest, rtol=1e-5)
    np.testing.assert_allclose(found.moments, expected.moments, rtol=1e-3, atol=1e-2)
    assert found.typical_output == pytest.approx(expected.typical_output, rel=1e-3)


def _inputs(x: np.ndarray, matrix: np.ndarray) -> Inputs:
    moments = (x.T @ x)[None].astype(np.float32)
    outputs = np.square(x @ matrix).sum(axis=1)
    return Inputs(np.abs(x).max(axis=0), moments, len(x), float(np.median(outputs)))


def test_harm_is_the_relative_error_of_rounding_where_tokens_are_alike():
    random = np.random.default_rng(0)
    x, matrix = random.normal(size=(400, 64)), random.normal(size=(64, 48)).astype(np.float32)
    grid = Grid(32, signed=False, stored=np.float32)
    steps = np.repeat(np.abs(matrix.reshape(2, 32, 48)).max(axis=1) / 8, 32, axis=0)
    rounded = np.rint(matrix / steps) * steps
    seen = np.square(x @ (rounded - matrix)).sum() / np.square(x @ matrix).sum()
    assert harm(matrix, _inputs(x, matrix), grid) == pytest.approx(seen, rel=0.2)


def test_a_few_massive_tokens_make_a_matrix_sensitive():
    random = np.random.default_rng(0)
    x, matrix = random.normal(size=(400, 64)), random.normal(size=(64, 48)).astype(np.float32)
    grid = Grid(32, signed=False, stored=np.float32)
    usual = harm(matrix, _inputs(x, matrix), grid)
    x[::50, 5] = 500
    assert harm(matrix, _inputs(x, matrix), grid) > 50 * usual


def test_sensitive_matrices_are_found_by_measurement_and_get_8_bits():
    random = np.random.default_rng(0)
    g = GraphBuilder(FLOAT)
    x = g.input("x", FLOAT, ["batch", "sequence", HIDDEN])
    y = g.linear(g.op("Neg", x), "calm", _weight(random, HIDDEN, HIDDEN))
    y = g.linear(g.op("Sigmoid", y), "massive", _weight(random, HIDDEN, HIDDEN))
    graph = g.build("test", {"features": Output(y, ["batch", "sequence", HIDDEN])})
    tokens = random.normal(size=(400, HIDDEN))
    matrices = {name: _values(name, graph)[0] for name in ("calm/weight", "massive/weight")}
    calibration = {name: _inputs(tokens, matrix) for name, matrix in matrices.items()}
    tokens[::50, 5] = 500
    calibration["massive/weight"] = _inputs(tokens, matrices["massive/weight"])
    row = row_of("onnxruntime", "int4")
    assert row.four_bits is not None
    wider = sensitive(graph, calibration, row.four_bits)
    assert wider == {"massive/weight"}
    expected = _run(graph)[0]
    lower(graph, row, calibration=calibration, wider=wider)
    bits = {n.name: n.attributes["bits"].as_int() for n in graph.model.graph if n.domain}
    assert bits == {"calm/MatMulNBits": 4, "massive/MatMulNBits": 8}
    found = _run(graph)[0]
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
