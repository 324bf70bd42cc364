"""`siren bench report`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.progress import console
from siren_bench.report import head_section, insert_report

from . import options


def report(
    heads: Annotated[
        list[str], typer.Argument(help="As in the names of the files, latency-HEAD.json.")
    ],
    results: Annotated[
        Path, typer.Option(help="The folder of results.", exists=True)
    ] = options.RESULTS,
    readme: Annotated[
        Path | None,
        typer.Option(help="Put the report between its marks in this file.", exists=True),
    ] = None,
) -> None:
    """Make the table and chart of a README's first screen from recorded results.

    Latency is needed; throughput, cold-start and memory of the same head are added where they
    are recorded.
    """
    folder = readme.parent if readme else Path.cwd()
    text = "\n".join(head_section(head, results, folder) for head in heads)
    if readme:
        insert_report(readme, text)
        console.print(f"wrote the report of {', '.join(heads)} into {readme}")
    else:
        typer.echo(text)
