"""`siren bench report`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.records.progress import say
from siren_bench.reports.report import full_section, insert_report, read_report, summary_section
from siren_runtime.commands.console import write_lines

from . import options


def report(
    heads: Annotated[
        list[str],
        typer.Argument(
            help="As in the names of the files, latency-HEAD.json; the README has the first alone."
        ),
    ],
    results: Annotated[
        Path, typer.Option(help="The folder of results.", exists=True)
    ] = options.RESULTS,
    document: Annotated[
        Path | None,
        typer.Option(
            help="Put the full tables, charts and commands between the marks in this file.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            help="Put the small table between the marks in this file.", exists=True, dir_okay=False
        ),
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="Lengths that the small table has a column of.")
    ] = "32,128,512",
) -> None:
    """Make the tables of docs/benchmarks.md and of the README from recorded results.

    Latency is needed; throughput, cold-start and memory of the same head are added where they
    are recorded. Without --document and --readme the full tables go to standard output.
    """
    lengths = options.numbers_of("--tokens", tokens)
    reports = [read_report(head, results) for head in heads]
    folder = document.parent if document else Path.cwd()
    full = "\n".join(full_section(one, folder) for one in reports)
    if document is None and readme is None:
        write_lines(full)
    if document is not None:
        insert_report(document, full)
        say(f"wrote the report of {', '.join(heads)} into {document}")
    if readme is not None:
        insert_report(readme, summary_section(reports[0], lengths))
        say(f"wrote the small table of {heads[0]} into {readme}")
