"""The wire walker finds every file an ONNX model names, and survives every other bytes."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from siren_runtime import BundleError
from siren_runtime.bundle.external_data import external_data_locations
from siren_runtime.bundle.reader import load_bundle
from tiny_bundle import make_bundle, make_model, seal


def _tensor(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="t", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _sparse(values: str, indices: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=_tensor(values), indices=_tensor(indices), dims=[1])


def _node(**attributes: object) -> onnx.NodeProto:
    node = helper.make_node("Op", [], [])
    for name, value in attributes.items():
        node.attribute.append(helper.make_attribute(name, value))
    return node


def _graph(*nodes: onnx.NodeProto, tensors: tuple[str, ...] = ()) -> onnx.GraphProto:
    return onnx.GraphProto(name="g", node=nodes, initializer=[_tensor(name) for name in tensors])


def _in_training_info(name: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.training_info.add(algorithm=_graph(tensors=(name,)))
    return model


def _in_function_default(name: str) -> onnx.ModelProto:
    attribute = helper.make_attribute("value", _tensor(name))
    return onnx.ModelProto(functions=[onnx.FunctionProto(attribute_proto=[attribute])])


PLACES: dict[str, Callable[[str], onnx.ModelProto]] = {
    "initializer": lambda name: onnx.ModelProto(graph=_graph(tensors=(name,))),
    "sparse values": lambda name: onnx.ModelProto(
        graph=onnx.GraphProto(sparse_initializer=[_sparse(name, name)])
    ),
    "attribute": lambda name: onnx.ModelProto(graph=_graph(_node(value=_tensor(name)))),
    "attribute list": lambda name: onnx.ModelProto(graph=_graph(_node(value=[_tensor(name)]))),
    "sparse attribute": lambda name: onnx.ModelProto(
        graph=_graph(_node(value=_sparse(name, name)))
    ),
    "sparse attribute list": lambda name: onnx.ModelProto(
        graph=_graph(_node(value=[_sparse(name, name)]))
    ),
    "subgraph": lambda name: onnx.ModelProto(graph=_graph(_node(body=_graph(tensors=(name,))))),
    "subgraph list": lambda name: onnx.ModelProto(
        graph=_graph(_node(body=[_graph(_node(value=_tensor(name)))]))
    ),
    "function": lambda name: onnx.ModelProto(
        functions=[onnx.FunctionProto(node=[_node(value=_tensor(name))])]
    ),
    "function default": _in_function_default,
    "training graph": _in_training_info,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_location_is_found_wherever_onnx_can_hold_a_tensor(place: str) -> None:
    model = PLACES[place]("../../etc/passwd")
    assert external_data_locations(model.SerializeToString()) == {"../../etc/passwd"}


def test_no_field_of_onnx_that_can_hold_a_tensor_is_forgotten() -> None:
    """onnx's own description of its messages, walked from ModelProto."""
    holders, seen = {"TensorProto"}, set[str]()

    def leads_to_tensor(descriptor: object, path: tuple[str, ...] = ()) -> bool:
        name = descriptor.name
        if name in holders:
            return True
        if name in path:
            return False
        children = [field for field in descriptor.fields if field.message_type]
        found = [field for field in children if leads_to_tensor(field.message_type, (*path, name))]
        seen.update(f"{name}.{field.number}" for field in found)
        return bool(found)

    assert leads_to_tensor(onnx.ModelProto.DESCRIPTOR)
    from siren_runtime.bundle.external_data import _CHILDREN

    known = {f"{message}Proto.{number}" for message, f in _CHILDREN.items() for number in f}
    assert known >= seen


@given(st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5))
def test_every_location_of_a_model_is_found(names: set[str]) -> None:
    model = onnx.ModelProto(graph=_graph(tensors=tuple(names)))
    assert external_data_locations(model.SerializeToString()) == names


def test_the_last_and_every_other_of_repeated_entries_are_found() -> None:
    tensor = _tensor("weights.bin")
    tensor.external_data.add(key="location", value="/etc/passwd")
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor]))
    assert external_data_locations(model.SerializeToString()) == {"weights.bin", "/etc/passwd"}


@given(st.binary(max_size=300))
def test_arbitrary_bytes_give_locations_or_a_bundle_error(data: bytes) -> None:
    with suppress(BundleError):
        assert all(isinstance(name, str) for name in external_data_locations(data))


@given(st.data())
def test_a_damaged_model_gives_locations_or_a_bundle_error(data: st.DataObject) -> None:
    model = bytearray(PLACES["subgraph list"]("weights.bin").SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BundleError):
        external_data_locations(bytes(model[: data.draw(st.integers(0, len(model)))]))


def _number(value: int, *, longer: int = 0) -> bytes:
    """A number in seven bits a byte, and so many empty bytes longer than it has to be."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F)
    digits += [0] * longer
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


def _field(number: int, payload: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(payload)) + payload


def _nest(depth: int) -> bytes:
    graph = _graph(tensors=("deep.bin",)).SerializeToString()
    for _ in range(depth):  # graph.node.attribute.g
        graph = _field(1, _field(5, _field(6, graph)))
    return _field(7, graph)


def _hidden(level: int, tag_of: Callable[[int], bytes], longer: int = 0) -> bytes:
    """A model with external data, one tag or length on the way to which is written otherwise.

    `level` counts from the entries: value, external_data, initializer, graph.
    """
    path, payload = (2, 13, 5, 7), b"hidden.bin"
    for place, number in enumerate(path):
        size = _number(len(payload), longer=longer if place == level else 0)
        tag = tag_of(number << 3 | 2) if place == level else _number(number << 3 | 2)
        payload = tag + size + payload
        if number == 2:
            payload = _field(1, b"location") + payload
    return payload


@pytest.mark.parametrize("level", range(4))
def test_no_tag_hides_a_field_that_an_engine_reads(level: int) -> None:
    """Protobuf's C++ takes a tag modulo 2^32, and at most five bytes of it and of a length."""
    assert external_data_locations(_hidden(level, _number)) == {"hidden.bin"}
    longer = _hidden(level, lambda tag: _number(tag, longer=1))
    assert external_data_locations(longer) == {"hidden.bin"}
    for high in (1, 2, 7):
        hidden = _hidden(level, lambda tag, high=high: _number(tag | high << 32))
        with pytest.raises(BundleError, match="32 bits"):
            external_data_locations(hidden)
    with pytest.raises(BundleError, match="no number ends"):
        external_data_locations(_hidden(level, lambda tag: _number(tag, longer=5)))
    with pytest.raises(BundleError, match="no number ends"):
        external_data_locations(_hidden(level, _number, longer=5))


def test_a_bundle_whose_graph_hides_external_data_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    graph = folder / "score.onnx"
    graph.write_bytes(graph.read_bytes() + _hidden(3, lambda tag: _number(tag | 1 << 32)))
    seal(folder)
    with pytest.raises(BundleError, match=r"score\.onnx.*32 bits"):
        load_bundle(folder, verify="full")


def test_deep_nesting_costs_neither_recursion_nor_much_time() -> None:
    start = time.process_time()
    assert external_data_locations(_nest(5_000)) == {"deep.bin"}
    assert time.process_time() - start < 1.0


def test_a_location_that_is_not_utf8_is_refused() -> None:
    data = PLACES["initializer"]("weights.bin").SerializeToString()
    with pytest.raises(BundleError, match="UTF-8"):
        external_data_locations(data.replace(b"weights.bin", b"weights.b\xff\xff"))


def test_weights_inside_the_model_name_no_file() -> None:
    import numpy as np

    model = make_model(np.ones((3, 2), np.float32), np.ones((2, 2), np.float32))
    assert external_data_locations(model.SerializeToString()) == set()
