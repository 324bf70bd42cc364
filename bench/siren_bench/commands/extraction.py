"""`siren bench extraction`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.making.extraction import (
    BATCH,
    extraction_table,
    extractor_bundle,
    measure_extraction,
    our_extractor,
    transformers_extractor,
)
from siren_bench.records.progress import console, progress_bar
from siren_bench.subjects.corpus import load_corpus

from . import options
from .finish import finish
from .workbench import open_workbench


def extraction(
    head: options.Head,
    corpus: Annotated[
        list[Path],
        typer.Argument(help="JSON lines, as siren score reads them.", exists=True),
    ],
    backbone: options.Backbone = None,
    texts: Annotated[
        int, typer.Option(min=1, help="So many, evenly spaced over the corpus.")
    ] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each, after a warm-up.")] = 5,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Time the pooling of every layer's neurons, as siren extract does it, against transformers.

    Both pool the same texts in every round, in float32, and their features are compared.
    transformers takes texts of similar length in batches.
    """
    rows = load_corpus(corpus, limit=texts)
    with open_workbench(head, backbone, keep) as bench:
        source, max_length = bench.subject.backbone, bench.artifact.max_length
        with console.status("exporting and loading"):
            bundle = extractor_bundle(bench.checkpoint, source, bench.folder, max_length)
            extractors = {
                "siren-edge fp32": our_extractor(bundle, threads),
                "transformers float32": transformers_extractor(source, threads, max_length),
            }
        with progress_bar() as progress:
            results = measure_extraction(
                extractors, [row.text for row in rows], rounds, progress=progress
            )
        settings = {
            **bench.described,
            "corpus": [file.name for file in corpus],
            "texts": len(rows),
            "max_length": max_length,
            "transformers_batch": BATCH,
            "rounds": rounds,
            "threads": threads,
        }
    table = extraction_table(results)
    finish(options.result_path(output, "extraction", head), "extraction", settings, results, table)
