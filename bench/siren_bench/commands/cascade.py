"""`siren bench cascade`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.records.progress import progress_bar
from siren_bench.speed.cascade import cascade_table, measure_cascade
from siren_bench.streams.cascade import measure_stream_cascade, stream_cascade_table
from siren_bench.subjects.corpus import load_corpus
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
    stream: Annotated[
        str, typer.Option(help="Stream each text instead, in pieces of so many words: 1,8.")
    ] = "",
    threads: options.Threads = 2,
    output: Annotated[
        Path | None,
        options.output_option(
            "bench/results/cascade-BUNDLE.json; with --stream stream-cascade-BUNDLE.json"
        ),
    ] = None,
) -> None:
    """Time a guard with exits beside the whole guard, on real texts, one by one and in batches,
    with the macro-F1 of both on labelled rows; or with --stream as streams.
    """
    corpus = load_corpus(data, split=split or None, limit=rows)
    load = {"backend": "cpu", "threads": threads, "streaming": bool(stream), **AS_LLM_SIREN}
    exits, whole = Guard.load(bundle, **load), Guard.load(bundle, exits=False, **load)
    found = exits.manifest.cascade
    if found is None or not found.decides:
        raise InputError(f"{bundle}: no exit decides; choose bounds with siren calibrate --cascade")
    kind, measure, table = "cascade", measure_cascade, cascade_table
    sizes = options.numbers_of("--batches", batches)
    if stream:
        kind, measure, table = "stream-cascade", measure_stream_cascade, stream_cascade_table
        sizes = options.numbers_of("--stream", stream)
    with progress_bar() as progress:
        results = measure(exits, whole, corpus, sizes, rounds, progress)
    settings = {
        "bundle": bundle.resolve().name,
        "weights_sha256": exits.manifest.weights_sha256,
        "precision": exits.manifest.precision,
        "data": [file.name for file in data],
        "split": split,
        "exits": {one.depth: [one.low, one.high] for one in found.exits},
        "loss": found.loss,
        "rounds": rounds,
        "threads": threads,
    }
    path = options.result_path(output, kind, str(bundle))
    finish(path, kind, settings, results, table(results))
