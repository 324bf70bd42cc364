"""What each order of a polynomial head does on rows, and what the lower ones would decide."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime.bundle.heads import HeadSpec
from siren_runtime.bundle.manifest import Manifest

from .exit_bounds import HARMFUL, ExitScores, decisions
from .metrics import auroc, mean_macro_f1
from .table import markdown_table


@dataclass(frozen=True)
class OrderUse:
    """What one order does by its bounds.

    Attributes:
        macro_f1: of its own verdicts at the threshold, the mean over data sets.
        cost: multiply-adds of the terms up to it, for one text.
        decides: the share of rows that it is the first to be sure of; of the highest, the rest.
    """

    macro_f1: float
    cost: int
    decides: float


def order_costs(head: HeadSpec) -> list[int]:
    """The multiply-adds of a head's terms up to each order, ascending, for one text.

    A term beyond the first is `rank` products of directions with features, as many powers, and
    their weighed sum.
    """
    terms = [head.features] + [head.rank * (head.features + n) for n in range(2, head.orders + 1)]
    return [int(cost) for cost in np.cumsum(terms)]


class OrdersEvaluation(msgspec.Struct, frozen=True):
    """Figures of each order, ascending.

    Attributes:
        macro_f1: of its own verdicts at the guard's thresholds, the mean over data sets.
        auroc: the mean over data sets that have rows of both labels; None where none has.
        costs: multiply-adds of the terms up to it, for one text.
        decides: the share of rows that it is the first to be sure of by the bundle's bounds; of the
            highest, the rest.
        bounded_macro_f1: where each row is decided so; None of a bundle without bounds.
    """

    macro_f1: list[float]
    auroc: list[float | None]
    costs: list[int]
    decides: list[float]
    bounded_macro_f1: float | None


def measure_orders(
    scores: ExitScores,
    bounds: Sequence[tuple[float | None, float | None]],
    head: HeadSpec,
    thresholds: NDArray[np.float64],
) -> tuple[list[OrderUse], float]:
    """What each order does on the rows, and the macro-F1 where each row is decided by bounds.

    Args:
        bounds: as `Bounds.bounds`.
        thresholds: float64 [rows], from which each is harmful.
    """
    number, side = decisions(scores.exits, bounds)
    every = np.concatenate([scores.exits, scores.whole[:, None]], axis=1)
    reports = [
        OrderUse(
            mean_macro_f1(scores.harmful, every[:, place] >= thresholds, scores.datasets),
            cost,
            float(np.mean(number == place)),
        )
        for place, cost in enumerate(order_costs(head))
    ]
    verdicts = np.where(side < 0, scores.whole >= thresholds, side == HARMFUL)
    return reports, mean_macro_f1(scores.harmful, verdicts, scores.datasets)


def evaluate_orders(
    orders: NDArray[np.float64],
    harmful: NDArray[np.bool_],
    datasets: NDArray[np.str_],
    manifest: Manifest,
    thresholds: NDArray[np.float64],
) -> OrdersEvaluation:
    """Measure the orders of a guard's first head.

    Args:
        orders: float64 [rows, orders], scores by each of them, two or more.
        harmful: bool [rows], by the labels.
        datasets: str [rows], names.
        thresholds: float64 [rows], from which each is harmful.
    """
    lower, whole = orders[:, :-1], orders[:, -1]
    tokens = np.ones(len(whole), np.int64)  # a row costs the same, however long it is
    cascade, none = manifest.orders, [(None, None)] * lower.shape[1]
    bounds = [(one.low, one.high) for one in cascade.bounds] if cascade is not None else none
    rows = ExitScores(whole, lower, harmful, datasets, tokens)
    uses, bounded = measure_orders(rows, bounds, manifest.head, thresholds)
    return OrdersEvaluation(
        macro_f1=[one.macro_f1 for one in uses],
        auroc=[_mean_auroc(order, harmful, datasets) for order in orders.T],
        costs=[one.cost for one in uses],
        decides=[one.decides for one in uses],
        bounded_macro_f1=None if cascade is None else bounded,
    )


def orders_markdown(found: OrdersEvaluation) -> list[str]:
    """The lines of a report on orders."""
    head = ["order", "mean macro-F1", "mean AUROC", "multiply-adds"]
    head += ["rows it decides"] if found.bounded_macro_f1 is not None else []
    rows = []
    for place, cost in enumerate(found.costs):
        area = found.auroc[place]
        shown = "-" if area is None else f"{area:.4f}"
        row = [str(place + 1), f"{found.macro_f1[place]:.4f}", shown, f"{cost:,}"]
        rows.append([*row, f"{found.decides[place]:.1%}"][: len(head)])
    lines = ["", "Orders, each by its own score at the guard's thresholds:", ""]
    lines += markdown_table(head, rows)
    if found.bounded_macro_f1 is not None:
        lines += [
            "",
            f"Where each row is decided so, mean macro-F1 is {found.bounded_macro_f1:.4f}.",
        ]
    return lines


def _mean_auroc(
    scores: NDArray[np.float64], harmful: NDArray[np.bool_], datasets: NDArray[np.str_]
) -> float | None:
    of_datasets = [datasets == name for name in np.unique(datasets)]
    areas = [auroc(harmful[rows], scores[rows]) for rows in of_datasets]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None
