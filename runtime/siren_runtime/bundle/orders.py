"""What guard.json says of a polynomial head's lower orders: from which scores they would decide.

The graph gives all orders at once, so no verdict goes by these bounds: they say how many texts a
lower order is enough for.
"""

from collections.abc import Sequence

from siren_runtime.errors import BundleError

from .heads import HeadSpec
from .types import Probability, Size, Strict


class OrderBounds(Strict, frozen=True):
    """An order is sure that a text is safe up to `low`, and harmful from `high` on; None: never."""

    low: Probability | None = None
    high: Probability | None = None


class OrderCascade(Strict, frozen=True):
    """The bounds of the orders below the highest, ascending, and what they hold for.

    `cutoffs`, `loss` and `rows` are as those of exits (`siren_runtime.bundle.cascade.Cascade`).
    `cost` is the share of the head's multiply-adds that the rows would need.
    """

    bounds: list[OrderBounds]
    cutoffs: list[Probability]
    loss: float
    rows: Size
    cost: Probability


def check_orders(
    cascade: OrderCascade, head: HeadSpec, cutoffs: Sequence[float], origin: str
) -> None:
    """Refuse bounds of orders that contradict themselves or the primary head.

    Args:
        cutoffs: the thresholds of the head and its tiers, ascending.

    Raises:
        BundleError: they do.
    """
    what = f"{origin}: orders"
    if len(cascade.bounds) != max(head.orders - 1, 0) or not cascade.bounds:
        raise BundleError(
            f"{what}.bounds are {len(cascade.bounds)}; expected one of each order below the "
            f"highest of a polynomial, whose orders are {head.orders}"
        )
    for order, one in enumerate(cascade.bounds, start=1):
        if one.low is not None and one.high is not None and one.low >= one.high:
            raise BundleError(
                f"{what}: order {order} calls texts safe up to {one.low} and harmful from "
                f"{one.high}; the first must be lower"
            )
    if cascade.cutoffs != list(cutoffs):
        raise BundleError(
            f"{what}: the bounds are for thresholds of {cascade.cutoffs}, but the head's are "
            f"{list(cutoffs)}; choose them anew with siren calibrate --cascade"
        )
