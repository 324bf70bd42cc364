"""What `siren evaluate --disguised` does."""

from collections.abc import Sequence
from pathlib import Path

from siren_runtime import Guard
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report, write_lines
from siren_runtime.errors import InputError
from siren_train.data.reading import sampled
from siren_train.data.rows import Columns
from siren_train.data.sources import Source
from siren_train.measure.disguised import (
    DisguisedEvaluation,
    disguised_markdown,
    measure_disguised,
)
from siren_train.measure.evaluate import rows_of_split
from siren_train.measure.reports import measured_by, write_report
from siren_train.measure.stated import stated_reading, stated_thresholds


def evaluate_disguised(
    guard: Guard,
    bundles: Sequence[str],
    sources: Sequence[Source],
    columns: Columns,
    *,
    split: str,
    threshold: float | None,
    max_rows: int | None,
    output: Path | None,
) -> None:
    """Score rows of a split as they are and disguised, print the table, and write the report.

    Args:
        threshold: None takes the guard's.
        max_rows: of a data set; None takes all.
        output: a folder for JSON and table; None writes nothing.

    Raises:
        InputError: the data is unusable, all rows have a response, or a file cannot be written.
    """
    of_split = rows_of_split(sources, columns, split)
    rows = sampled((row for row in of_split if not row.has_response), max_rows)
    if not rows:
        raise InputError(
            f"{', '.join(source.name for source in sources)}: prompts are disguised, and all rows "
            f"of the {split} split have a response"
        )
    stated = stated_thresholds(guard, threshold)
    with Bars() as bars:
        results = measure_disguised(guard, rows, threshold, bars.update)
    evaluation = DisguisedEvaluation(
        bundles=list(bundles),
        sources=[source.name for source in sources],
        split=split,
        threshold=stated.threshold,
        results=results,
        max_rows=max_rows,
        each_label=stated.each_label,
        **vars(stated_reading(guard)),
    )
    markdown = disguised_markdown(evaluation)
    write_lines(markdown)
    if output is not None:
        write_report(output, "disguised", evaluation, markdown, measured_by(guard))
        report(f"{output}: disguised.json and disguised.md")
