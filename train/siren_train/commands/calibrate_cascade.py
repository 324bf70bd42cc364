"""What `siren calibrate --cascade` does: choose the bounds of a bundle's exits, or of the
orders of its polynomial.
"""

from collections.abc import Sequence

import numpy as np

from siren_runtime.bundle.reader import Bundle
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report, write_lines
from siren_train.data.rows import Columns
from siren_train.data.sources import Source


def calibrate_exits(
    bundle: Bundle,
    loss: float,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    max_rows: int | None,
    threads: int | None,
) -> None:
    """Choose bounds on the rows of a split, write them, and print what they give there.

    Args:
        loss: of macro-F1, in points of a hundredth.
        max_rows: of a data set; None is all.
    """
    from siren_train.measure.cascade import score_exits, write_bounds
    from siren_train.measure.exit_bounds import choose_bounds, decisions

    with Bars() as bars:
        scores = score_exits(bundle, sources, columns, split, max_rows, threads, bars.update)
    cascade, blocks = bundle.manifest.cascade, bundle.manifest.backbone.blocks_kept
    assert cascade is not None
    depths = [one.depth for one in cascade.exits]
    found = choose_bounds(scores, depths, blocks, bundle.manifest.cutoffs, loss / 100)
    write_bounds(bundle.path, found, loss / 100, len(scores.whole))
    numbers, _ = decisions(scores.exits, found.bounds)
    for number, (depth, (low, high)) in enumerate(zip(depths, found.bounds, strict=True)):
        write_lines(
            f"exit behind {depth} of {blocks} blocks: safe up to {_shown(low)}, harmful from "
            f"{_shown(high)}; decides {np.mean(numbers == number):.1%} of the rows"
        )
    write_lines(
        f"mean cost {found.cost:.3f}, macro-F1 lost {100 * found.lost:.2f} points on "
        f"{len(scores.whole)} {split} rows"
    )
    if found.cost == 1:
        report(
            f"{bundle.path}: no exit decides; the rows are too few for a loss of {loss:g} points, "
            "or the exits too weak: calibrate on more rows, or allow more (--loss)"
        )
    if bundle.manifest.spans:
        smallest = min(span.tokens for span in bundle.manifest.spans)
        report(
            f"{bundle.path}: has thresholds for spans, so exits decide on texts of at most "
            f"{smallest} tokens, special ones left out, which have no spans; the whole guard "
            "scores longer ones, unless spans are turned off (spans=False, --no-spans)"
        )


def calibrate_orders(
    bundle: Bundle,
    loss: float,
    sources: Sequence[Source],
    columns: Columns,
    split: str,
    max_rows: int | None,
    threads: int | None,
) -> None:
    """As `calibrate_exits`, of the orders below the highest of the primary head."""
    from siren_train.measure.exit_bounds import choose_bounds
    from siren_train.measure.order_cascade import score_orders, write_order_bounds
    from siren_train.measure.order_evaluation import measure_orders, order_costs

    with Bars() as bars:
        scores, has_response = score_orders(
            bundle, sources, columns, split, max_rows, threads, bars.update
        )
    manifest, rows = bundle.manifest, len(scores.whole)
    *costs, most = order_costs(manifest.head)
    found = choose_bounds(scores, costs, most, manifest.cutoffs, loss / 100)
    write_order_bounds(bundle.path, found, loss / 100, rows)
    of_responses = (manifest.responses or manifest).threshold
    thresholds = np.where(has_response, of_responses, manifest.threshold)
    reports, cascade = measure_orders(scores, found.bounds, manifest.head, thresholds)
    shown = [f"safe up to {_shown(low)}, harmful from {_shown(high)}" for low, high in found.bounds]
    for order, (one, bounds) in enumerate(zip(reports, [*shown, "the rest"], strict=True), start=1):
        write_lines(
            f"order {order}: {bounds}; decides {one.decides:.1%} of the rows; {one.cost:,} "
            f"multiply-adds; macro-F1 by itself {one.macro_f1:.4f}"
        )
    write_lines(
        f"mean cost {found.cost:.3f} of the head's, macro-F1 {cascade:.4f} against "
        f"{reports[-1].macro_f1:.4f}, at most {100 * found.lost:.2f} points lost on {rows} {split} "
        "rows"
    )
    report(
        f"{bundle.path}: all orders come out of one pass, so scoring goes by the highest and saves "
        "nothing by these bounds; they say how many texts a lower order is enough for"
    )


def _shown(bound: float | None) -> str:
    return "none" if bound is None else f"{bound:.4f}"
