"""`siren bench cascade`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.cascade import cascade_table, measure_cascade
from siren_bench.corpus import load_corpus
from siren_bench.progress import progress_bar
from siren_runtime import Guard
from siren_runtime.errors import InputError
from siren_runtime.text.reading import AS_LLM_SIREN

from . import options
from .finish import finish


def cascade(
    bundle: Annotated[Path, typer.Argument(help="A bundle whose exits have bounds.")],
    data: Annotated[list[Path], typer.Argument(help="JSON lines, as siren score reads them.")],
    split: Annotated[str, typer.Option(help="Which rows; empty for all.")] = "test",
    rows: Annotated[int, typer.Option(min=1, help="Rows at most, evenly spaced.")] = 400,
    batches: Annotated[str, typer.Option(help="Texts of a call, of mixed lengths.")] = "1,32",
    rounds: Annotated[int, typer.Option(min=1, help="Passes over the rows, in turns.")] = 5,
    threads: options.Threads = 2,
    output: options.Output = None,
) -> None:
    """Time a guard with exits beside the whole guard, on real texts, one by one and in batches."""
    corpus = load_corpus(data, split=split or None, limit=rows)
    exits = Guard.load(bundle, backend="cpu", threads=threads, **AS_LLM_SIREN)
    whole = Guard.load(bundle, backend="cpu", threads=threads, exits=False, **AS_LLM_SIREN)
    found = exits.manifest.cascade
    if found is None or not found.decides:
        raise InputError(f"{bundle}: no exit decides; choose bounds with siren calibrate --cascade")
    sizes = options.numbers_of("--batches", batches)
    with progress_bar() as progress:
        results = measure_cascade(exits, whole, corpus, sizes, rounds, progress)
    settings = {
        "bundle": bundle.resolve().name,
        "precision": exits.manifest.precision,
        "data": [file.name for file in data],
        "split": split,
        "exits": {one.depth: [one.low, one.high] for one in found.exits},
        "loss": found.loss,
        "rounds": rounds,
        "threads": threads,
    }
    path = options.result_path(output, "cascade", str(bundle))
    finish(path, "cascade", settings, results, cascade_table(results))
