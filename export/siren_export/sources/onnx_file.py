"""An ONNX file of a language model, as Optimum, torch's exporter or onnxruntime-genai's builder
writes it: where it lies, what its config says of it, and its weights.

Nothing of it is run here, and no file outside its folder is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from siren_runtime.bundle.external_data import external_data_locations
from siren_runtime.bundle.files import sha256_of
from siren_runtime.bundle.manifest import check_relative
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import CheckpointError, is_of_caller
from siren_runtime.generation.folder import CONFIG_FILE as GENAI_CONFIG
from siren_runtime.generation.folder import read_folder

from .finite import all_finite
from .local_file import check_is_file, read_json
from .weights import Array, Blocks, TensorInfo

MODEL_FILE = "model.onnx"
_CONFIG_FILE = "config.json"
_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CHANNELS = ("hidden_size", "n_embd", "d_model", "dim")
_POSITIONS = ("max_position_embeddings", "n_positions")
_OLDEST_OPSET = 13  # from which on sums and squeezes take their axes as an input
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PICKS = ("Gather", "GatherBlockQuantized")  # rows of a table, its first input, by the second
_FORMS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # of the same ids
_CACHE = "present.{}.key"  # as Optimum names the outputs of keys
# By which an attention of the genai builder keeps a window of keys alone, in a cache as long as the
# window. How far it looks back is told by another attribute.
_CACHE_OF_WINDOW = "sliding_window_cache"


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A language model's graph.

    Attributes:
        path: the file; its weights lie in the same folder.
        config: as config.json has it, or made of genai_config.json.
        blocks, channels: how many blocks, and how wide the residual stream.
        head_size: the channels of an attention head, where that must be known of a cache.
        positions: the longest text in tokens, where the config says one.
        tokens, mask: the inputs of token ids and of 1 for real tokens.
        result: the output of logits or of the last hidden state.
        caches: of each block, the output of its keys, where the graph has them.
    """

    path: Path
    config: dict[str, Any]
    blocks: int
    channels: int
    head_size: int | None
    positions: int | None
    tokens: str
    mask: str
    result: str
    caches: tuple[str, ...]

    @cached_property
    def vocab_size(self) -> int | None:
        """The rows of the table that token ids pick from; None where none is found."""
        ids = [value for value in self.load().graph.inputs if value.name == self.tokens]
        return min((rows for value in ids for rows in _rows_picked(value)), default=None)

    def sizes_of_cache(self, shape: Sequence[object]) -> tuple[int, int] | None:
        """Heads and channels of a cache, given an input's shape [batch, heads, tokens, channels].

        The builder leaves the channels open. None where it is no cache.
        """
        if len(shape) != 4 or not isinstance(shape[1], int):
            return None
        channels = shape[3] if isinstance(shape[3], int) else self.head_size
        return None if channels is None else (shape[1], channels)

    def load(self) -> ir.Model:
        """The graph anew, its functions put in place of their calls; weights stay in their files.

        Its caches may be empty, those of windows too.

        Raises:
            CheckpointError: it cannot be read.
        """
        model = _load(self.path)
        for node in model.graph.all_nodes():
            node.attributes.pop(_CACHE_OF_WINDOW, None)
        return model


def _rows_picked(ids: ir.Value) -> Iterator[int]:
    """The rows of each table that ids pick from, as they are or in another form."""
    for node in ids.consumers():
        if node.op_type in _PICKS and len(node.inputs) > 1 and node.inputs[1] is ids:
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            if shape is not None and isinstance(shape[0], int):
                yield shape[0]
        elif node.op_type in _FORMS and node.inputs[0] is ids:
            yield from _rows_picked(node.outputs[0])


def find_graph(source: Path) -> Path | None:
    """The ONNX file that `source` is, or that lies in the folder `source` in place of weights.

    Raises:
        CheckpointError: the folder holds several and none is called model.onnx.
    """
    if source.suffix == ".onnx" and not source.is_dir():
        return source
    if not source.is_dir() or any(source.glob("*.safetensors")):
        return None
    found = sorted(source.glob("*.onnx"))
    if len(found) > 1 and source / MODEL_FILE not in found:
        raise CheckpointError(
            f"{source}: holds {', '.join(path.name for path in found)}; name the file that is the "
            f"whole model, such as {found[0]}"
        )
    return source / MODEL_FILE if len(found) > 1 else found[0] if found else None


def open_graph(path: Path) -> OnnxFile:
    """Read what there is to know of an ONNX file: its config, its inputs and outputs.

    Raises:
        CheckpointError: it is none, or its config lacks what is needed.
    """
    check_is_file(path, CheckpointError)
    if (path.parent / GENAI_CONFIG).is_file():
        return _open_genai(path)
    config = read_json(path.parent / _CONFIG_FILE, dict[str, Any], CheckpointError)
    _check_type(config, path)
    text = config.get("text_config") or config
    graph = _load(path).graph
    if not graph.outputs:
        raise CheckpointError(f"{path}: has no output")
    blocks = _size(text, _BLOCKS, path)
    caches = tuple(_CACHE.format(block) for block in range(blocks))
    outputs = {value.name for value in graph.outputs}
    return OnnxFile(
        path=path,
        config=config,
        blocks=blocks,
        channels=_size(text, _CHANNELS, path),
        head_size=None,
        positions=next((text[key] for key in _POSITIONS if isinstance(text.get(key), int)), None),
        tokens="input_ids",
        mask="attention_mask",
        result=str(graph.outputs[0].name),
        caches=caches if outputs.issuperset(caches) else (),
    )


def _open_genai(path: Path) -> OnnxFile:
    folder = read_folder(path.parent, CheckpointError)
    beside = path.parent / _CONFIG_FILE
    config = {"model_type": folder.model_type}
    if beside.is_file():
        config = read_json(beside, dict[str, Any], CheckpointError)
        _check_type(config, path)
    return OnnxFile(
        path=path,
        config=config,
        blocks=folder.blocks,
        channels=folder.hidden_size,
        head_size=folder.head_size,
        positions=folder.context_length,
        tokens=folder.tokens,
        mask="attention_mask",
        result=folder.logits,
        caches=folder.cache_keys,
    )


def _check_type(config: Mapping[str, Any], path: Path) -> None:
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f"{path.parent / _CONFIG_FILE}: model_type is {config.get('model_type')!r}; expected "
            "the name of an architecture, such as 'qwen3_moe'"
        )


def _size(config: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> int:
    for key in keys:
        if isinstance(config.get(key), int) and 1 <= config[key] <= 1_000_000:
            return int(config[key])
    raise CheckpointError(
        f"{path.parent / _CONFIG_FILE}: says nothing of the graph beside it: looked for "
        f"{' or '.join(keys)}"
    )


def _load(path: Path) -> ir.Model:
    try:
        data = path.read_bytes()
        for location in external_data_locations(data):
            check_relative(location, str(path))
            check_is_file(path.parent / location, CheckpointError)
        model = ir.load(path)
    except CheckpointError:
        raise
    except Exception as error:  # whatever protobuf and onnx-ir raise at damaged bytes
        if is_of_caller(error):
            raise
        raise CheckpointError(f"{path}: not an ONNX model that can be read: {error}") from None
    if model.functions:
        model = InlinePass()(model).model
    opset = model.graph.opset_imports.get("", 0)
    if opset < _OLDEST_OPSET:
        raise CheckpointError(
            f"{path}: its operators are of opset {opset}; export it with {_OLDEST_OPSET} or later"
        )
    return model


def stored_bytes(file: OnnxFile, tensor: ir.TensorProtocol) -> NDArray[np.uint8]:
    """The bytes of a tensor as it is stored, uint8 [n]; in its own file they are mapped.

    Raises:
        CheckpointError: the file ends before.
    """
    if not isinstance(tensor, ir.ExternalTensor):
        return np.frombuffer(tensor.tobytes(), np.uint8)
    path, offset = file.path.parent / str(tensor.location), tensor.offset or 0
    if path.stat().st_size < offset + tensor.nbytes:
        raise CheckpointError(f"{path}: ends before {tensor.name!r} of {file.path.name} does")
    # Not by onnx-ir, which refuses a file that has a second hard link, as weights of grafts have.
    return np.memmap(path, np.uint8, "r", offset, (tensor.nbytes,))


@dataclass(frozen=True, eq=False)
class OnnxWeights:
    """The initializers of a graph as a `WeightSource`, by their names."""

    file: OnnxFile
    source: str
    _values: dict[str, ir.TensorProtocol] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = self.file.load().graph.initializers
        found = {name: value.const_value for name, value in values.items()}
        object.__setattr__(
            self, "_values", {name: tensor for name, tensor in found.items() if tensor is not None}
        )

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """As `WeightSource.tensors`."""
        return {
            name: TensorInfo(name, tensor.dtype.numpy(), tuple(tensor.shape.numpy()))
            for name, tensor in self._values.items()
        }

    def read(self, name: str, rows: slice | None = None) -> Array:
        """As `WeightSource.read`; of whole numbers too."""
        tensor = self._values[name]
        values: Array = stored_bytes(self.file, tensor).view(tensor.dtype.numpy())
        values = values.reshape(tensor.shape.numpy())
        values = values if rows is None else values[rows]
        if tensor.dtype in _FLOATS and not all_finite(values):
            raise CheckpointError(f"{self.file.path}: {name!r} holds a value that is not finite")
        return values

    def block_layout(self, name: str) -> tuple[int, bool] | None:
        """As `WeightSource.block_layout`: matrices of few bits stay in the graph as they are."""
        return None

    def read_blocks(self, name: str, rows: slice | None = None) -> Blocks:
        """There are none."""
        raise CheckpointError(f"{self.file.path}: {name!r} is not stored in blocks")

    def digests(self) -> dict[str, str]:
        """As `WeightSource.digests`; the graph's file is one of them."""
        path = self.file.path
        beside = external_data_locations(path.read_bytes())
        return {name: sha256_of(path.parent / name) for name in sorted({path.name, *beside})}


def precision_of(model: ir.Model) -> Precision | None:
    """The precision of a graph's matrix products, by the most frequent of them; None of none."""
    found = [precision for node in model.graph if (precision := _precision(node))]
    if not found:
        return None
    most: Precision = max(sorted(set(found)), key=found.count)
    return most


def _precision(node: ir.Node) -> Precision | None:
    if node.op_type == "MatMulNBits":
        return "int4" if node.attributes.get_int("bits", 4) == 4 else "int8"
    if node.op_type.startswith(("MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul")):
        return "int8"
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    dtypes = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    known: dict[ir.DataType, Precision] = {
        ir.DataType.FLOAT16: "fp16",
        ir.DataType.BFLOAT16: "bf16",
        ir.DataType.FLOAT: "fp32",
    }
    return next((known[dtype] for dtype in known if dtype in dtypes), None)
