"""Find every file that an ONNX model would read beside itself.

A tensor with external data names the file that holds it, and a hostile model can name any file
of the machine. Tensors hide in many places: initializers, attributes, subgraphs of control
flow, functions. This walks the protobuf wire format (protobuf.dev/programming-guides/encoding)
by the field numbers of onnx.proto, so that a bundle can be checked without the onnx package.
"""

from collections.abc import Iterator

from siren_runtime.errors import BundleError

# message -> field number -> message of that field, for the fields that can lead to a tensor
_CHILDREN = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
}  # fmt: skip
_KEY, _VALUE = 1, 2  # of StringStringEntryProto, which external_data repeats
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
# Bytes of a number at most, and of one that says what comes: a tag or a length.
_LONGEST, _LONGEST_HEAD = 10, 5


def external_data_locations(model: bytes) -> set[str]:
    """Return the `location` of every tensor with external data, anywhere in an ONNX model.

    Every byte is looked at once at most, and nesting costs no Python recursion, so hostile
    bytes take time and memory linear in their number.

    Raises:
        BundleError: the bytes are not protobuf, or a location is not UTF-8.
    """
    locations: set[str] = set()
    pending = [("Model", 0, len(model))]
    while pending:
        message, start, end = pending.pop()
        if message == "ExternalData":
            locations.update(_location(model, start, end))
            continue
        children = _CHILDREN[message]
        for number, field_start, field_end in _fields(model, start, end):
            if number in children:
                pending.append((children[number], field_start, field_end))
    return locations


def _location(model: bytes, start: int, end: int) -> set[str]:
    entries = [(number, model[first:last]) for number, first, last in _fields(model, start, end)]
    if (_KEY, b"location") not in entries:
        return set()
    try:
        return {value.decode("utf-8") for number, value in entries if number == _VALUE}
    except UnicodeDecodeError:
        raise BundleError("the location of a tensor's external data is not UTF-8") from None


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of each length-delimited field of one message."""
    while start < end:
        tag, start = _varint(data, start, end, _LONGEST_HEAD)
        if tag >= 1 << 32:  # of which engines read the lower 32 bits, and so another field
            raise BundleError(f"not an ONNX model: a tag before byte {start} has over 32 bits")
        number, wire_type = tag >> 3, tag & 7
        first = start
        if wire_type == _VARINT:
            _, start = _varint(data, start, end, _LONGEST)
        elif wire_type == _FIXED64:
            start += 8
        elif wire_type == _FIXED32:
            start += 4
        elif wire_type == _LENGTH_DELIMITED:
            length, first = _varint(data, start, end, _LONGEST_HEAD)
            start = first + length
        else:
            raise BundleError(f"not an ONNX model: wire type {wire_type} at byte {start}")
        if start > end:
            raise BundleError(f"not an ONNX model: a field at byte {first} is cut off")
        if wire_type == _LENGTH_DELIMITED:
            yield number, first, start


def _varint(data: bytes, start: int, end: int, longest: int) -> tuple[int, int]:
    value = 0
    for index in range(start, min(start + longest, end)):
        value |= (data[index] & 0x7F) << 7 * (index - start)
        if data[index] < 0x80:
            return value, index + 1
    raise BundleError(f"not an ONNX model: no number ends at byte {start}")
