"""Every family is grafted in every form that the builder makes, and gives the model's own neurons.

What stands in a family's folder is the business of onnxruntime-genai's builder. Its forms for CUDA
are run on the CPU here, where ONNX Runtime has the same operators.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxruntime.capi._pybind_state import quantize_matmul_4bits

from generators import FAMILIES, need_genai
from models import make_artifact
from reference import auto_class
from siren_export.graft.extractor import engine_precision
from siren_export.graft.graft import find_blocks, graft
from siren_export.heads.base import Artifact
from siren_export.heads.registry import load_artifact
from siren_runtime.errors import CheckpointError
from siren_runtime.generation.engine import Engine
from siren_runtime.generation.folder import read_folder
from siren_runtime.generation.manifest import NEURONS_OUTPUT

need_genai()
Make = Callable[..., Path]
PROMPT = "The history of bread begins"
FORMS = (("fp32", "cpu"), ("fp16", "cpu"), ("int4", "cpu"), ("fp16", "cuda"), ("int4", "cuda"))
EVERY = [(family, *form) for family in FAMILIES for form in FORMS]
# There the builder puts the norms of queries and keys into the attention, which only CUDA has.
CUDA_ONLY = ("qwen3", "gemma3")
# ONNX Runtime 1.32 reads a prompt in this form, and fails at the next token, grafted or not.
NO_TOKENS = ("fp16", "cpu")
# Of a state's size; those of two blocks, or before and behind an MLP, differ by 0.2 and more. In
# int4, what the weights are multiplied with is rounded too.
BOUNDS = {"fp32": 1e-3, "fp16": 0.02, "int4": 0.12}
_BLOCK = 32  # inputs that share a scale


@pytest.fixture(scope="module")
def artifact(
    tmp_path_factory: pytest.TempPathFactory, backbone: Make
) -> Callable[[str, str, int], Artifact]:
    """Return a head for a family, by its pooling and the outputs of its first matrix."""

    @functools.cache
    def make(family: str, pooling: Any, width: int) -> Artifact:
        folder = tmp_path_factory.mktemp("head")
        head = make_artifact(folder, backbone(family), pooling=pooling, hidden_dims=(width,))
        return load_artifact(head)

    return make


@pytest.fixture(scope="module")
def states(backbone: Make) -> Callable[..., list[np.ndarray]]:
    """Return what transformers says that blocks and MLPs give, float32 [tokens, hidden] each."""

    @functools.cache
    def run(family: str, pooling: str, int4: bool, tokens: tuple[int, ...]) -> list[np.ndarray]:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(backbone(family))
        model = auto_class(config).from_pretrained(backbone(family), dtype=torch.float32).eval()
        for name, matrix in model.named_parameters():
            # The builder rounds embeddings only where they are the last matrix too.
            if int4 and matrix.dim() == 2 and (config.tie_word_embeddings or "embed" not in name):
                matrix.data.copy_(torch.from_numpy(_of_four_bits(matrix.detach().numpy())))
        of_mlps: list[torch.Tensor] = []
        for layer in model.model.layers:
            layer.mlp.register_forward_hook(lambda _, __, output: of_mlps.append(output))
        with torch.no_grad():
            hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[1:]
        return [state[0].numpy() for state in (hidden if pooling == "residual_mean" else of_mlps)]

    return run


def _of_four_bits(matrix: np.ndarray) -> np.ndarray:
    """A matrix [outputs, inputs] by ONNX Runtime's own rounding, as float32 again."""
    outputs, inputs = matrix.shape
    blocks = -(-inputs // _BLOCK)
    pairs = np.zeros((outputs, blocks, _BLOCK // 2), np.uint8)
    scales = np.zeros(outputs * blocks, np.float32)
    zeros = np.zeros(outputs * -(-blocks // 2), np.uint8)
    columns = np.ascontiguousarray(matrix.T)
    quantize_matmul_4bits(pairs, columns, scales, zeros, _BLOCK, outputs, inputs, True)
    integers = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(outputs, blocks, _BLOCK)
    whole = (integers.astype(np.float32) - 8) * scales.reshape(outputs, blocks, 1)
    return whole.reshape(outputs, -1)[:, :inputs]


@pytest.mark.parametrize("pooling", ["residual_mean", "mlp_mean"])
@pytest.mark.parametrize(
    ("family", "precision", "device"),
    [one for one in EVERY if one[0] not in CUDA_ONLY or one[2] == "cpu"],
)
def test_neurons_are_those_of_the_model_as_transformers_runs_it(
    family: str,
    precision: str,
    device: str,
    pooling: str,
    generator: Make,
    artifact: Callable[..., Artifact],
    states: Callable[..., list[np.ndarray]],
    tmp_path: Path,
) -> None:
    # 99 outputs are more than there are neurons, so that these leave the graph as they are.
    folder, head = generator(family, precision, device), artifact(family, pooling, 99)
    checked = device == "cpu" and (precision, device) != NO_TOKENS  # it is checked where it is for
    manifest = graft(folder, head, tmp_path / "out", foreign=True, verify=checked)
    assert (manifest.check is not None) == checked
    engine = Engine(tmp_path / "out", threads=1, device="cpu")
    tokens = engine.encode(PROMPT)
    run = engine.run(len(tokens) + 1, {})
    run.append(tokens)
    found = run.output(NEURONS_OUTPUT)
    assert (found.dtype, found.shape) == (np.float32, (1, len(tokens), manifest.neurons))
    expected = states(family, pooling, precision == "int4", tuple(tokens))
    channels = head.head.taps.channels
    ends = np.cumsum([len(picked) for picked in channels.values()])[:-1]
    for (block, picked), neurons in zip(channels.items(), np.split(found[0], ends, 1), strict=True):
        state = expected[block][:, picked]
        difference = np.linalg.norm(neurons - state) / np.linalg.norm(state)
        assert difference < BOUNDS[precision], block


def _generated(folder: Path) -> list[int]:
    engine = Engine(folder, threads=1, device="cpu")
    tokens = engine.encode(PROMPT)
    run = engine.run(len(tokens) + 8, {"do_sample": False})
    run.append(tokens)
    return [run.step() for _ in range(8)]


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in CUDA_ONLY])
def test_the_forms_for_cuda_generate_as_before(
    family: str,
    precision: str,
    generator: Make,
    artifact: Callable[..., Artifact],
    tmp_path: Path,
) -> None:
    folder, head = generator(family, precision, "cuda"), artifact(family, "residual_mean", 5)
    graft(folder, head, tmp_path / "out", foreign=True, verify=False)
    assert _generated(tmp_path / "out") == _generated(folder)


def _rest(graph: onnx.GraphProto) -> dict[str, bytes]:
    """What stands in a graph and is not the graft's, by its kind and name."""
    found = {}
    for kind in ("input", "output", "initializer", "node"):
        for one in getattr(graph, kind):
            if not one.name.startswith("siren."):
                key = f"{kind} {one.name or list(one.output)}"
                found[key] = one.SerializeToString(deterministic=True)
    return found


# 5 numbers are what a matrix in the graph makes of the neurons; 99 would be more than they are.
@pytest.mark.parametrize(("width", "pooling"), [(5, "residual_mean"), (99, "mlp_mean")])
@pytest.mark.parametrize(("family", "precision", "device"), EVERY)
def test_the_graph_gives_one_output_more_and_the_rest_is_as_it_was(
    family: str,
    precision: str,
    device: str,
    width: int,
    pooling: str,
    generator: Make,
    artifact: Callable[..., Artifact],
    tmp_path: Path,
) -> None:
    folder, head = generator(family, precision, device), artifact(family, pooling, width)
    manifest = graft(folder, head, tmp_path / "out", foreign=True, verify=False)
    assert manifest.width == min(width, manifest.neurons)
    old, new = (onnx.load(place / "model.onnx", load_external_data=False)
                for place in (folder, tmp_path / "out"))  # fmt: skip
    assert _rest(new.graph) == _rest(old.graph)
    *outputs, added = new.graph.output
    assert [output.name for output in outputs] == [output.name for output in old.graph.output]
    shape = ["batch_size", "sequence_length", manifest.width]
    assert _described(added) == (NEURONS_OUTPUT, onnx.TensorProto.FLOAT, shape)
    alone = onnx.shape_inference.infer_shapes(_added(new), check_type=True, strict_mode=True)
    onnx.checker.check_model(alone, full_check=True)
    assert _described(alone.graph.output[0]) == (NEURONS_OUTPUT, onnx.TensorProto.FLOAT, shape)
    Engine(tmp_path / "out", threads=1, device="cpu")  # ONNX Runtime takes the whole for right


def _added(model: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes of the graft alone, which read the states as the builder describes them.

    The builder's own are none that onnx's checker knows.
    """
    graph = model.graph
    nodes = [node for node in graph.node if node.name.startswith("siren.")]
    given = {value.name: value for value in graph.value_info}
    constants = [one for one in graph.initializer if one.name.startswith("siren.")]
    weights = {one.name for one in constants if one.data_location == onnx.TensorProto.EXTERNAL}
    inner = {name for node in nodes for name in node.output} | {one.name for one in constants}
    read = dict.fromkeys(name for node in nodes for name in node.input if name not in inner)
    inputs = [given[name] for name in read]
    inputs += [
        onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims)
        for one in constants
        if one.name in weights
    ]
    result = onnx.helper.make_empty_tensor_value_info(NEURONS_OUTPUT)
    rest = [one for one in constants if one.name not in weights]
    return onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "graft", inputs, [result], rest),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def _described(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    tensor = value.type.tensor_type
    shape = [one.dim_param or one.dim_value for one in tensor.shape.dim]
    return value.name, tensor.elem_type, shape


@pytest.mark.parametrize(("family", "precision", "device"), EVERY)
def test_blocks_are_those_that_the_builder_names_so(
    family: str, precision: str, device: str, generator: Make
) -> None:
    folder = read_folder(generator(family, precision, device))
    blocks = find_blocks(ir.load(folder.path / folder.graph), folder)
    places = [f"/model/layers.{i + 1}/" for i in range(len(blocks))]
    assert all(place in str(b.residual.name) for b, place in zip(blocks, places, strict=True))
    places = [f"/model/layers.{i}/mlp/" for i in range(len(blocks))]
    assert all(place in str(b.mlp.name) for b, place in zip(blocks, places, strict=True))  # type: ignore[union-attr]
    assert engine_precision(folder) == precision


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_for_cuda_is_refused_since_the_builder_leaves_its_caches_out(
    family: str, generator: Make, artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    folder, head = generator(family, "fp32", "cuda"), artifact(family, "residual_mean", 5)
    with pytest.raises(CheckpointError, match=r"attention of block 0, which writes 'present\.0"):
        graft(folder, head, tmp_path / "out", foreign=True, verify=False)
