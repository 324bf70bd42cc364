"""`siren bench spans`."""

from typing import Annotated

import typer

from siren_bench.records.progress import console, progress_bar
from siren_bench.speed.span_cost import measure_span_cost, span_cost_table
from siren_bench.subjects.texts import texts_of
from siren_runtime import Guard

from . import options
from .finish import finish
from .workbench import open_workbench


def spans(
    head: options.Head,
    backbone: options.Backbone = None,
    engine: Annotated[str, typer.Option(help="Our precision.")] = "fp32",
    tokens: Annotated[
        str, typer.Option(help="Lengths of the texts; those over 512 are read in windows.")
    ] = "40,128,512,2048,8192",
    sizes: Annotated[str, typer.Option(help="Of the spans, in tokens.")] = "32,64,128",
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of each length.")] = 7,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Time what scoring spans adds to scoring a text, in pairs, and how windows grow with it."""
    lengths = options.numbers_of("--tokens", tokens)
    of_spans = options.numbers_of("--sizes", sizes)
    (precision,) = options.precisions_of(engine)
    with open_workbench(head, backbone, keep) as bench, progress_bar() as progress:
        texts = texts_of(bench.checkpoint.tokenizer_json, lengths)
        with console.status("exporting and loading"):
            guard = Guard.load(bench.bundle(precision), threads=threads)
        results = measure_span_cost(guard, texts, of_spans, rounds, progress)
        settings = {
            **bench.described,
            "precision": precision,
            "sizes": of_spans,
            "rounds": rounds,
            "threads": threads,
        }
    path = options.result_path(output, "spans", head)
    finish(path, "spans", settings, results, span_cost_table(results))
