"""What a quantizing pass is told beside the graph."""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from .calibration import Calibration


@dataclass(frozen=True)
class Options:
    """What quantizing goes by.

    Attributes:
        keep_float: names of the matrices that stay as they are, where the row of the table says
            that it holds; one that a graph does not have is ignored there.
        calibration: of the linears' inputs; None where there is none.
        wider: names of the matrices that get 8 bits where the rest has 4.
    """

    keep_float: Set[str] = frozenset()
    calibration: Calibration | None = None
    wider: Set[str] = frozenset()

    def moments(self, matrix_name: str) -> np.ndarray | None:
        """The second moments of a linear's inputs, by which 4 bits are rounded; else to nearest."""
        return None if self.calibration is None else self.calibration[matrix_name].moments
