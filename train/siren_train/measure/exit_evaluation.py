"""What the exits of a guard do on rows: how much they save, and what they change."""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from .table import markdown_table


class ExitEvaluation(msgspec.Struct, frozen=True):
    """What exits do.

    Attributes:
        cost: the share of the whole guard's blocks that the tokens of the rows needed.
        exits: the share of rows that was decided behind so many blocks; the last are all of them.
        whole_mean_macro_f1, whole_by_dataset: of the whole guard on the same rows.
        changed_verdicts: the share of rows that the whole guard judges otherwise.
    """

    cost: float
    exits: dict[int, float]
    whole_mean_macro_f1: float
    whole_by_dataset: dict[str, float]
    changed_verdicts: float


def measure_exits(
    exits: NDArray[np.int64],
    tokens: NDArray[np.int64],
    changed: NDArray[np.bool_],
    blocks: int,
    whole_by_dataset: Mapping[str, float],
) -> ExitEvaluation:
    """Measure the exits of a guard.

    Args:
        exits: int64 [rows], the blocks that were run where an exit decided, else 0.
        tokens: int64 [rows], of each text.
        changed: bool [rows], whether the whole guard judges otherwise.
        blocks: of the whole guard.
        whole_by_dataset: its macro-F1.
    """
    depths = np.where(exits > 0, exits, blocks)
    return ExitEvaluation(
        cost=float((tokens * depths).sum() / (tokens.sum() * blocks)),
        exits={int(depth): float((depths == depth).mean()) for depth in np.unique(depths)},
        whole_mean_macro_f1=float(np.mean([*whole_by_dataset.values()])),
        whole_by_dataset=dict(whole_by_dataset),
        changed_verdicts=float(changed.mean()),
    )


def exits_markdown(
    found: ExitEvaluation, mean: float, by_dataset: Mapping[str, float]
) -> list[str]:
    """The lines of a report on exits, beside the macro-F1 that the guard has with them."""
    shares = ", ".join(f"{share:.1%} behind {depth}" for depth, share in found.exits.items())
    return [
        "",
        f"Exits: rows were decided {shares} blocks. **Mean cost {found.cost:.3f}** of the whole "
        f"guard's blocks, mean macro-F1 {mean:.4f} against its {found.whole_mean_macro_f1:.4f}; "
        f"{found.changed_verdicts:.2%} of the verdicts are not its own. AUROC, average precision "
        "and calibration error are the whole guard's, since scores of several depths do not rank.",
        "",
        *markdown_table(
            ("data set", "macro-F1 with exits", "whole guard"),
            [(n, f"{by_dataset[n]:.4f}", f"{f1:.4f}") for n, f1 in found.whole_by_dataset.items()],
        ),
    ]
