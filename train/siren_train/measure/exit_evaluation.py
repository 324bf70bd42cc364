"""What the exits of a guard do on rows: how much they save, and what they change."""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from .table import markdown_table


class ExitEvaluation(msgspec.Struct, frozen=True):
    """What exits do.

    Attributes:
        cost: the share of the whole guard's blocks that the tokens read of the rows needed; None
            where some rows are read in windows, which need blocks each by itself.
        exits: the share of rows that was decided behind so many blocks, of windows behind those of
            the one that counts; the last are all of them.
        whole_mean_macro_f1, whole_by_dataset: of the whole guard on the same rows.
        changed_verdicts: the share of rows that the whole guard judges otherwise.
    """

    cost: float | None
    exits: dict[int, float]
    whole_mean_macro_f1: float
    whole_by_dataset: dict[str, float]
    changed_verdicts: float


def measure_exits(
    exits: NDArray[np.int64],
    tokens: NDArray[np.int64] | None,
    changed: NDArray[np.bool_],
    blocks: int,
    whole_by_dataset: Mapping[str, float],
) -> ExitEvaluation:
    """Measure the exits of a guard.

    Args:
        exits: int64 [rows], the blocks that were run where an exit decided, else 0.
        tokens: int64 [rows], that are read of each text; None where some are read in windows.
        changed: bool [rows], whether the whole guard judges otherwise.
        blocks: of the whole guard.
        whole_by_dataset: its macro-F1.
    """
    depths = np.where(exits > 0, exits, blocks)
    return ExitEvaluation(
        cost=None if tokens is None else float((tokens * depths).sum() / (tokens.sum() * blocks)),
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
    cost = "No mean cost is told of rows that are read in windows;"
    if found.cost is not None:
        cost = f"**Mean cost {found.cost:.3f}** of the whole guard's blocks,"
    return [
        "",
        f"Exits: rows were decided {shares} blocks. {cost} mean macro-F1 {mean:.4f} against the "
        f"whole guard's {found.whole_mean_macro_f1:.4f}; "
        f"{found.changed_verdicts:.2%} of the verdicts are not its own. AUROC, average precision "
        "and calibration error are the whole guard's, since scores of several depths do not rank.",
        "",
        *markdown_table(
            ("data set", "macro-F1 with exits", "whole guard"),
            [(n, f"{by_dataset[n]:.4f}", f"{f1:.4f}") for n, f1 in found.whole_by_dataset.items()],
        ),
    ]
