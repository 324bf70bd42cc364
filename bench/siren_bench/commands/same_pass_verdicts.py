"""`siren bench same-pass-verdicts`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.quality.same_pass_verdicts import compare_verdicts, verdicts_table
from siren_bench.records.progress import progress_bar
from siren_bench.records.record import write_record
from siren_bench.subjects.corpus import load_corpus
from siren_runtime.commands.console import need, write_lines
from siren_runtime.errors import InputError

from . import options


def same_pass_verdicts(
    grafted: Annotated[Path, typer.Argument(help="What siren graft made.")],
    corpus: Annotated[
        list[Path],
        typer.Argument(help="JSON lines; rows of a prompt and a response count.", exists=True),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Compare with this float32 guard of the same backbone and head, which streams; "
            "without it with the grafted model's own weights, multiplied in float32."
        ),
    ] = None,
    responses: Annotated[
        int, typer.Option(min=1, help="So many, evenly spaced over the corpus.")
    ] = 500,
    split: Annotated[
        str | None, typer.Option(help='Only rows of this "split"; a head knows its train rows.')
    ] = None,
    chat: Annotated[bool, typer.Option(help="Put prompts in the model's chat template.")] = True,
    tokens: Annotated[int, typer.Option(min=1, help="Of a response, at most.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine.")] = 2,
    output: Annotated[
        Path | None, options.output_option("bench/results/same-pass-verdicts-GRAFTED.json")
    ] = None,
) -> None:
    """Verdicts of a generator on itself, against float32, on written responses.

    Both read the same tokens, the generator as if it had chosen them, and decide by the folder's
    thresholds; by its spans too, but not beside a bundle, whose stream of tokens has no sentences.
    """
    need("onnxruntime_genai")
    rows = [row for row in load_corpus(corpus, split=split) if row.pair is not None]
    if not rows:
        raise InputError(f"{', '.join(map(str, corpus))}: no row has a prompt and a response")
    count = min(responses, len(rows))
    rows = [rows[number * len(rows) // count] for number in range(count)]
    with progress_bar() as progress:
        results = compare_verdicts(
            grafted, bundle, rows, chat=chat, tokens=tokens, threads=threads, progress=progress
        )
    table = verdicts_table(results)
    write_lines(table)
    output = output or options.RESULTS / f"same-pass-verdicts-{grafted.name}.json"
    settings = {
        "grafted": grafted.name,
        "bundle": bundle.name if bundle else None,
        "corpus": [file.name for file in corpus],
        "split": split,
        "chat": chat,
        "tokens": tokens,
    }
    write_record(output, "same-pass-verdicts", settings, results, table)
