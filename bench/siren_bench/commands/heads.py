"""`siren bench heads`."""

from typing import Annotated, cast

import typer

from siren_bench.records.progress import progress_bar
from siren_bench.speed.head_cost import KINDS, HeadBench, head_cost_table
from siren_bench.subjects.texts import texts_of
from siren_runtime.bundle.types import Precision

from . import options
from .finish import finish
from .workbench import open_workbench


def heads(
    head: options.Head,
    backbone: options.Backbone = None,
    kinds: Annotated[
        str,
        typer.Option(
            help="Kinds of further heads: linear; labels, 8 of them over a small MLP; forecast, "
            "linear; same, of the first head's shape; polynomial, of order 3 and rank 32."
        ),
    ] = ",".join(KINDS),
    counts: Annotated[str, typer.Option(help="Heads of a guard, the first one included.")] = "10",
    engine: Annotated[str, typer.Option(help="Our precision.")] = "fp32",
    tokens: Annotated[str, typer.Option(help="Lengths of the texts.")] = "32,128,512",
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of each measurement.")] = 9,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Time guards of several heads on one pass beside a guard of one, in turns."""
    wanted = [kind.strip() for kind in kinds.split(",")]
    for kind in wanted:
        if kind not in KINDS:
            raise typer.BadParameter(f"{kind!r} is not one of {', '.join(KINDS)}")
    lengths, numbers = (
        options.numbers_of("--tokens", tokens),
        options.numbers_of("--counts", counts),
    )
    if numbers[0] < 2:
        raise typer.BadParameter("--counts are from 2; one head is what they are compared with")
    (precision,) = options.precisions_of(engine)
    with open_workbench(head, backbone, keep) as bench, progress_bar() as progress:
        texts = texts_of(bench.checkpoint.tokenizer_json, lengths)
        measured = HeadBench(
            bench.artifact, bench.checkpoint, bench.folder, cast("Precision", precision), threads
        )
        results = measured.measure(wanted, numbers, texts, rounds, progress)
        settings = {
            **bench.described,
            "precision": precision,
            "rounds": rounds,
            "threads": threads,
        }
    path = options.result_path(output, "heads", head)
    finish(path, "heads", settings, results, head_cost_table(results))
