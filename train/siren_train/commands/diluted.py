"""What `siren evaluate --diluted` does."""

from collections.abc import Sequence
from pathlib import Path

from siren_runtime import Guard
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report, write_lines
from siren_train.data.dilution import checked_lengths
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns
from siren_train.data.sources import Source
from siren_train.measure.diluted import (
    DilutedEvaluation,
    diluted_markdown,
    measure_diluted,
)
from siren_train.measure.diluted_plot import plot_diluted
from siren_train.measure.evaluate import rows_of_split
from siren_train.measure.reports import measured_by, write_report
from siren_train.measure.stated import stated_thresholds


def evaluate_diluted(
    guard: Guard,
    bundles: Sequence[str],
    sources: Sequence[Source],
    columns: Columns,
    *,
    lengths: str,
    split: str,
    threshold: float | None,
    max_rows: int | None,
    output: Path | None,
) -> None:
    """Score rows of a split alone and among plain text, print the table, and write the report.

    Args:
        lengths: in tokens of the plain text, such as 100,300.
        threshold: None takes the guard's, of rows with a response that of responses.
        max_rows: of a data set; None takes all.
        output: a folder for JSON, table and picture; None writes nothing.

    Raises:
        InputError: the data is unusable, or a file cannot be written.
    """
    tokens, of_split = checked_lengths(lengths), rows_of_split(sources, columns, split)
    rows = sampled(of_split, max_rows)
    with Bars() as bars:
        results = measure_diluted(guard, rows, tokens, threshold, bars.update, among=of_split)
    evaluation = DilutedEvaluation(
        bundles=list(bundles),
        sources=[source.name for source in sources],
        split=split,
        span_thresholds=dict(guard.judge.spans),
        results=results,
        **vars(stated_thresholds(guard, threshold)),
    )
    markdown = diluted_markdown(evaluation)
    write_lines(markdown)
    if output is not None:
        write_report(output, "diluted", evaluation, markdown, measured_by(guard))
        plot_diluted(evaluation, output / "diluted.png")
        report(f"{output}: diluted.json, diluted.md and diluted.png")
