"""Lower orders of a polynomial head: which texts they are enough for, and what that would save."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from siren_runtime import Guard
from siren_runtime.bundle.manifest import Manifest
from siren_runtime.bundle.orders import OrderBounds, OrderCascade
from siren_runtime.bundle.progress import Progress
from siren_runtime.bundle.reader import Bundle, load_bundle
from siren_runtime.errors import InputError
from siren_runtime.scoring.engines import Request, open_engines
from siren_runtime.scoring.scorer import Scorer
from siren_runtime.text.reading import LLM_SIREN_LIMITS
from siren_train.data.chunks import chunks_told
from siren_train.data.rows import Columns
from siren_train.data.sources import Source

from .evaluate import most_tokens, rows_of_split
from .exit_bounds import MOST_EXITS, Bounds, ExitScores
from .guard_json import write_manifest

MOST_ORDERS = MOST_EXITS + 1  # the lower ones are as exits


def score_orders(
    bundle: Bundle,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    max_rows: int | None,
    threads: int | None,
    progress: Progress,
) -> tuple[ExitScores, NDArray[np.bool_]]:
    """Score the rows of a split by every order; the highest is the whole, the others are exits.

    A row costs the same however long it is, so `tokens` are 1.

    Returns:
        The scores, and bool [rows]: which have a response.

    Raises:
        InputError: the head has one order or more than `MOST_ORDERS`, the bundle does not say how
            large its terms are, or the data is unusable or has no row of that split.
        BackendError: a score is not finite.
    """
    head = bundle.manifest.head
    if not 2 <= head.orders <= MOST_ORDERS:
        raise InputError(
            f"{bundle.path}: bounds are chosen for polynomials of 2 to {MOST_ORDERS} orders, found "
            f"{head.orders}"
        )
    if not head.rank:
        raise InputError(
            f"{bundle.path}: does not say how large the head's terms are; export it again"
        )
    rows = rows_of_split(sources, columns, split, max_rows)
    engines = open_engines(bundle, Request("cpu", threads))
    guard = Guard([Scorer(bundle, engines)], limits=LLM_SIREN_LIMITS)
    orders: list[tuple[float, ...]] = []
    most = most_tokens(guard)
    lengths = [row.length(most) for row in rows]
    for chunk in chunks_told(rows, 512, lengths, "scoring", progress):
        orders += [result.orders for result in guard.score_batch([row.text for row in chunk])]
    scores = np.array(orders, np.float64)
    found = ExitScores(
        scores[:, -1],
        scores[:, :-1],
        np.array([row.label == 1 for row in rows]),
        np.array([row.dataset for row in rows]),
        np.ones(len(rows), np.int64),
    )
    return found, np.array([row.has_response for row in rows])


def write_order_bounds(folder: Path, bounds: Bounds, loss: float, rows: int) -> Manifest:
    """Write the bounds of orders into a bundle's guard.json, and return the new manifest.

    Args:
        loss, rows: of macro-F1 that was allowed, and on how many rows.

    Raises:
        BundleError: the bundle is damaged.
        InputError: guard.json cannot be written.
    """
    manifest = load_bundle(folder).manifest
    orders = OrderCascade(
        [OrderBounds(low, high) for low, high in bounds.bounds],
        manifest.cutoffs,
        loss,
        rows,
        bounds.cost,
    )
    return write_manifest(folder, msgspec.structs.replace(manifest, orders=orders))
