"""A generator's folder whose graph gives the mean of every block's states over a pass's tokens."""

import shutil
from pathlib import Path
from typing import Final, Literal

import onnx_ir as ir

from siren_export.bundle_writer import staging
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import CheckpointError
from siren_runtime.generation.folder import GenaiFolder

from .blocks import Block
from .graft import find_blocks, link_or_copy, serialized
from .rewrite import add_means

MEANS: Final = "siren.means"


def write_extractor(
    folder: GenaiFolder, output: Path, pooling: Literal["residual_mean", "mlp_mean"]
) -> None:
    """Write the extractor of a generator to `output`, with hard links to its weights.

    Its graph gives `MEANS`, float32 [1, 1, blocks * hidden], over the tokens of one pass.

    Raises:
        CheckpointError: the graph is built otherwise than what is known here.
        BundleError: `output` cannot be written.
    """
    model = ir.load(folder.path / folder.graph)
    blocks = find_blocks(model, folder)
    add_means(model.graph, [_state(block, pooling) for block in blocks], MEANS)
    with staging(output, overwrite=False) as place:
        for name in folder.files:
            if name in folder.weights:
                link_or_copy(folder.path / name, place / name)
            elif name != folder.graph:
                shutil.copyfile(folder.path / name, place / name)
        (place / folder.graph).write_bytes(serialized(model))


def _state(block: Block, pooling: str) -> ir.Value:
    return block.residual if pooling == "residual_mean" else block.mlp


def engine_precision(folder: GenaiFolder) -> Precision:
    """The precision of a generator's matrix products, by the most frequent of them.

    Raises:
        CheckpointError: there is none that is known.
    """
    model = ir.load(folder.path / folder.graph)
    found = [precision for node in model.graph if (precision := _precision(node))]
    if not found:
        raise CheckpointError(f"{folder.path / folder.graph}: no matrix product is known here")
    return max(sorted(set(found)), key=found.count)


def _precision(node: ir.Node) -> Precision | None:
    if node.op_type == "MatMulNBits":
        bits = node.attributes["bits"].as_int() if "bits" in node.attributes else 4
        return "int4" if bits == 4 else "int8"
    if node.op_type != "MatMul" or node.outputs[0].dtype is None:
        return None
    known: dict[ir.DataType, Precision] = {
        ir.DataType.FLOAT: "fp32",
        ir.DataType.FLOAT16: "fp16",
        ir.DataType.BFLOAT16: "bf16",
    }
    return known.get(node.outputs[0].dtype)
