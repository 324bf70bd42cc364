"""What every benchmark ends with: its record, its table and its chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siren_bench.records.progress import say
from siren_bench.records.record import read_record, write_record
from siren_bench.reports.charts import draw_chart
from siren_runtime.commands.console import write_lines


def finish(
    path: Path,
    bench: str,
    settings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    table: str,
    measured: Mapping[str, Any] | None = None,
) -> None:
    """Print the table; write `path` (JSON) and beside it the table (.md) and the chart (.png).

    What could not be measured is named below the table with the reason.

    Args:
        measured: As in `write_record`.
    """
    missing = settings.get("missing", {})
    if missing:
        reasons = "".join(f"- {name}: {reason}\n" for name, reason in missing.items())
        table = f"{table}\nNot measured:\n\n{reasons}"
    write_lines(table)
    write_record(path, bench, settings, results, table, measured)
    chart = draw_chart(read_record(path), path.with_suffix(".png"))
    say(f"{path}, {path.with_suffix('.md')}" + (f", {chart}" if chart else ""))
