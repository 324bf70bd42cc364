"""A generator's folder whose graph gives the mean of every block's states over a pass's tokens."""

import shutil
from pathlib import Path
from typing import Final, Literal

import onnx_ir as ir

from siren_export.bundle_writer import staging
from siren_export.sources.onnx_file import precision_of
from siren_runtime.bundle.types import Precision
from siren_runtime.errors import CheckpointError
from siren_runtime.generation.folder import GenaiFolder

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
    state: Literal["residual", "mlp"] = "residual" if pooling == "residual_mean" else "mlp"
    add_means(model.graph, [block.state(state) for block in blocks], MEANS)
    with staging(output, overwrite=False) as place:
        for name in folder.files:
            if name in folder.weights:
                link_or_copy(folder.path / name, place / name)
            elif name != folder.graph:
                shutil.copyfile(folder.path / name, place / name)
        (place / folder.graph).write_bytes(serialized(model))


def engine_precision(folder: GenaiFolder) -> Precision:
    """The precision of a generator's matrix products, by the most frequent of them.

    Raises:
        CheckpointError: there is none that is known.
    """
    found = precision_of(ir.load(folder.path / folder.graph))
    if found is None:
        raise CheckpointError(f"{folder.path / folder.graph}: no matrix product is known here")
    return found
