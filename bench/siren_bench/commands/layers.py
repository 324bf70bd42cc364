"""`siren bench layers`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from siren_bench.quality.fidelity import thresholds_of, thresholds_told
from siren_bench.quality.layers import layer_results, layers_table
from siren_bench.records.progress import progress_bar
from siren_bench.subjects.corpus import load_corpus
from siren_export.tune.sensitivity import measure_layers
from siren_runtime.bundle.reader import load_bundle

from . import options
from .finish import finish
from .workbench import open_workbench


def layers(
    head: options.Head,
    corpus: Annotated[
        list[Path], typer.Argument(help="JSON lines, as siren score reads them.", exists=True)
    ],
    backbone: options.Backbone = None,
    precision: Annotated[
        Literal["int8", "int4"], typer.Option(help="Of the layer that is quantized.")
    ] = "int8",
    split: Annotated[str | None, typer.Option(help='Only rows of this "split".')] = None,
    texts: Annotated[
        int, typer.Option(min=1, help="So many, evenly spaced over the corpus.")
    ] = 300,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Find out whose quantization moves the scores: each layer alone, all others in float32.

    The effect is the mean square of how far the log-odds move; effects of layers add up, about,
    and each is given as a share of their sum. siren export --precision auto keeps those in
    float32 that have the most for their size.
    """
    rows = load_corpus(corpus, split=split, limit=texts)
    with open_workbench(head, backbone, keep) as bench:
        bundle = load_bundle(bench.bundle("fp32"))
        with TemporaryDirectory(dir=bench.folder) as scratch, progress_bar() as progress:
            found = measure_layers(
                bench.artifact,
                bench.checkpoint,
                bundle,
                Path(scratch),
                precision,
                [row.text for row in rows],
                progress,
            )
        settings = {
            **bench.described,
            "corpus": [file.name for file in corpus],
            "split": split,
            "texts": len(rows),
            "precision": precision,
            "thresholds": thresholds_told(bench.artifact.decision),
        }
    results = layer_results(found, thresholds_of(rows, bench.artifact.decision))
    path = options.result_path(output, "layers", head)
    finish(path, "layers", settings, results, layers_table(results))
