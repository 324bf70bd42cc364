"""What a quantizing pass is told beside the graph."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from .calibration import Calibration

Moments = Callable[[], np.ndarray | None]  # made when a matrix is rounded


@dataclass(frozen=True)
class Options:
    """What quantizing goes by.

    Attributes:
        keep_float: names of the matrices that stay as they are, where the row of the table says
            that it holds; one that a graph does not have is ignored there.
        calibration: of the linears' inputs; None where there is none.
        wider: names of the matrices that get 8 bits where the rest has 4.
        divided: by the names of matrices, what their inputs are divided by since they were
            measured, float32 [in].
    """

    keep_float: Set[str] = frozenset()
    calibration: Calibration | None = None
    wider: Set[str] = frozenset()
    divided: Mapping[str, np.ndarray] = field(default_factory=dict)

    def moments(self, matrix_name: str) -> Moments:
        """What makes the second moments of a linear's inputs as they are now, by which weights are
        rounded; None rounds to nearest. They are large, so none are held that were divided.
        """

        def make() -> np.ndarray | None:
            if self.calibration is None:
                return None
            inputs, divided = self.calibration[matrix_name], self.divided.get(matrix_name)
            return inputs.moments if divided is None else inputs.divided(divided).moments

        return make
