"""Which matrices 4 bits would harm most, told by what calibration measured.

Rounding to nearest with a step s leaves an error of s^2 / 12 in a weight. So a token's product is
off by E, in the mean over the tokens of the examples, and what counts is how that compares with the
product of a typical token:

    E = sum over inputs i of mean(x_i^2) times the sum over outputs of s^2 / 12
    harm = E / median over the tokens of |x W|^2

In most matrices the median is near the mean, and the harm is the relative error of the product. It
is largest in values, which attention averages for every token after. Where a few tokens have
massive activations (arXiv 2402.17762), as in the MLP's second matrix of some early block, their
error alone is as large as the typical product, and pooling hands it to the features.
"""

from collections.abc import Callable, Collection

import numpy as np

from siren_export.graph.builder import GuardGraph
from siren_export.graph.roles import Role
from siren_export.graph.weights import Weight

from .calibration import Calibration, Inputs
from .edit import linears
from .four_bits import Grid

# SmolLM2's matrices above it hold a tenth of the weights, and made 94 % of what rounding each by
# itself did to the features.
_LIMIT = 0.01
# An encoder's matrices that always keep 8 bits, all but queries and keys: 83 % of MiniLM's. In ONNX
# Runtime 99.5 % of 1,300 validation rows' verdicts were kept with them, and 98.8 % with measured
# ones alone, for 25.9 MB in place of 23.2; for RTX 99.3 % of 1,832, and 98.7 % of 150 training
# rows', for 44.5 MB in place of 42.3.
ENCODER_EIGHT_BITS: tuple[Role, ...] = ("value", "attention_output", "mlp_up", "mlp_down")


def sensitive(
    graph: GuardGraph,
    calibration: Calibration,
    grid: Grid,
    encoder: Collection[Role] = (),
    *,
    carries_over: Callable[[Weight], bool] | None = None,
) -> frozenset[str]:
    """The names of the matrices that the steps of `grid` harm too much.

    Args:
        encoder: roles whose matrices count as sensitive in an encoder, whatever was measured.
        carries_over: whether a matrix keeps the blocks that the checkpoint has it in, which harms
            nothing; None where none does.
    """
    found = set()
    for linear in linears(graph):
        weight = graph.weights[linear.matrix_name]
        if carries_over is not None and carries_over(weight):
            continue
        matrix = np.concatenate([block.astype(np.float32) for block in weight.blocks()])
        known = not graph.causal and linear.role in encoder
        if known or harm(matrix, calibration[linear.matrix_name], grid) > _LIMIT:
            found.add(linear.matrix_name)
    return frozenset(found)


def harm(matrix: np.ndarray, inputs: Inputs, grid: Grid) -> float:
    """The expected error of a product with a rounded matrix [in, out], as above."""
    if inputs.moments is None or inputs.typical_output is None:
        raise AssertionError("harm goes by the moments of the inputs")
    starts = np.arange(0, len(matrix), grid.block)
    steps = np.maximum.reduceat(np.abs(matrix), starts, axis=0) / -grid.lowest
    squares = np.einsum("gii->gi", inputs.moments).reshape(-1) / inputs.tokens
    error = np.add.reduceat(squares, starts) @ np.square(steps).sum(axis=1) / 12
    return float(error / max(inputs.typical_output, np.finfo(np.float32).tiny))
