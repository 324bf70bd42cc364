"""What `siren evaluate` does with texts, or trajectories, as they are."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from siren_runtime import Guard
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report, write_lines
from siren_train.data.benchmarks import Benchmark, paper_figures
from siren_train.data.rows import Columns
from siren_train.data.sources import Source
from siren_train.measure.evaluate import measure, score_rows, tokens_read
from siren_train.measure.evaluation_tables import evaluation_markdown
from siren_train.measure.exit_evaluation import measure_exits
from siren_train.measure.order_evaluation import evaluate_orders
from siren_train.measure.plots import plot_evaluation
from siren_train.measure.reports import measured_by, write_report
from siren_train.measure.stated import label_thresholds, stated_reading, stated_thresholds

from .labels_shown import say_unnamed


def evaluate_texts(
    guard: Guard,
    load: Callable[..., Guard],
    bundles: Sequence[str],
    sources: Sequence[Source],
    columns: Columns,
    *,
    split: str,
    head: str | None,
    threshold: float | None,
    by_category: bool,
    benchmarks: Sequence[Benchmark],
    max_rows: int | None,
    output: Path | None,
) -> None:
    """Score the rows of a split, print the tables, and write the report.

    Where exits decide on some, the rows are scored without them too, and ranked by that. Long texts
    and spans are read as the guard was loaded for.

    Args:
        load: opens the guard anew, with options of `Guard.load`.
        head: the name of the one that is measured; None is the first.
        threshold: of the first; None takes each head's own, of rows with a response that of
            responses.
        benchmarks: those that are among the data sets.
        max_rows: of a data set; None takes all.
        output: a folder for JSON, tables and plots; None writes nothing.

    Raises:
        InputError: the data is unusable, or a file cannot be written.
    """
    stated = stated_thresholds(guard, threshold, head)
    about: dict[str, Any] = {
        "bundles": bundles,
        "sources": [source.name for source in sources],
        "split": split,
        "head": head,
        **vars(stated),
    }
    score = partial(
        score_rows,
        sources=sources,
        columns=columns,
        split=split,
        head=head,
        threshold=threshold,
        max_rows=max_rows,
        spans=None,
    )
    exits = None
    with Bars() as bars:
        scores = score(guard, progress=bars.update)
        if scores.exits.any():
            guard.close()
            guard = load(exits=False)
            whole = score(guard, progress=bars.update)
            blocks, changed = guard.manifest.backbone.blocks_kept, scores.flagged != whole.flagged
            by_dataset = {n: m.counted for n, m in measure(whole, **about).by_dataset.items()}
            read = tokens_read(scores, guard)
            exits = measure_exits(scores.exits, read, changed, blocks, by_dataset)
            scores = scores.ranked_as(whole)
    orders = None
    is_first = head in (None, guard.heads[0]) and len(bundles) == 1
    if scores.orders.shape[1] > 1 and is_first and guard.manifest.head.rank:  # else no costs
        cut = scores.orders, scores.harmful, scores.datasets
        orders = evaluate_orders(*cut, guard.manifest, stated.of_rows(scores.has_response))
    labels = label_thresholds(guard, threshold)
    say_unnamed(scores, labels)
    found = measure(scores, **about, by_category=by_category, thresholds=labels)
    measured = [one for one in benchmarks if one.name in found.by_dataset]
    evaluation = replace(
        found,
        exits=exits,
        orders=orders,
        max_rows=max_rows,
        paper=paper_figures(measured),
        notes={one.name: one.note for one in measured if one.note},
        **vars(stated_reading(guard, head)),
    )
    markdown = evaluation_markdown(evaluation)
    write_lines(markdown)
    if output is not None:
        write_report(output, "evaluation", evaluation, markdown, measured_by(guard))
        plot_evaluation(scores, evaluation, output)
        report(f"{output}: evaluation.json, evaluation.md and plots")
