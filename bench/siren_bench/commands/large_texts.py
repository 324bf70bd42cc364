"""`siren bench large-texts`."""

from typing import Annotated

import typer

from siren_bench.records.progress import progress_bar
from siren_bench.speed.large_texts import large_texts_table, measure_large_texts

from . import options
from .finish import finish
from .workbench import open_workbench


def large_texts(
    head: options.Head,
    backbone: options.Backbone = None,
    engine: Annotated[str, typer.Option(help="Our precision.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each text.")] = 3,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Measure texts of 10 MB and of one character, alone and beside others: time and memory."""
    (precision,) = options.precisions_of(engine)
    with open_workbench(head, backbone, keep) as bench:
        bundle = bench.bundle(precision)
        with progress_bar() as progress:
            results = measure_large_texts(bundle, rounds, progress)
        settings = {
            **bench.described,
            "precision": precision,
            "rounds": rounds,
        }
    path = options.result_path(output, "large-texts", head)
    finish(path, "large-texts", settings, results, large_texts_table(results))
