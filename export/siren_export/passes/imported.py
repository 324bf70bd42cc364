"""What becomes of a graph that was not authored here: nothing. Passes know authored graphs only."""

from dataclasses import replace

from siren_export.sources.checkpoint import Checkpoint
from siren_export.sources.onnx_file import precision_of
from siren_runtime.bundle.types import Precision, Target
from siren_runtime.errors import CheckpointError, InputError

from .table import Row, row_of


def own_precision(checkpoint: Checkpoint) -> Precision:
    """The precision that a checkpoint is exported in where none is asked for.

    Raises:
        CheckpointError: it is an ONNX file without any matrix product.
    """
    if checkpoint.onnx is None:
        return "fp32"
    found = precision_of(checkpoint.onnx.load())
    if found is None:
        raise CheckpointError(f"{checkpoint.onnx.path}: looked for matrix products, found none")
    return found


def row_of_checkpoint(checkpoint: Checkpoint, target: Target, precision: Precision) -> Row:
    """The row of a pair, without passes and streams where the graph is taken as it is.

    Raises:
        InputError: there is none, or the graph would have to be rewritten for it.
        CheckpointError: as `own_precision`.
    """
    row = row_of(target, precision)
    if checkpoint.onnx is None:
        return row
    path, own = checkpoint.onnx.path, own_precision(checkpoint)
    if target != "onnxruntime":
        raise InputError(
            f"{path}: a graph that was not authored here is taken as it is, so it is not rewritten "
            f"for --target {target}; export it for onnxruntime"
        )
    if precision != own:
        hint = "is quantized already" if own in ("int4", "int8") else f"is in {own}"
        raise InputError(
            f"{path}: the graph {hint}, and a graph that was not authored here is taken as it is; "
            f"export it with --precision {own}, or quantize the file for {precision} before"
        )
    return replace(
        row,
        quantize=None,
        rewrites=(),
        calibration="none",
        four_bits=None,
        carries_over=None,
        streams=False,
        keeps_float=False,
        saturation_free=row.quantize is None,
    )
