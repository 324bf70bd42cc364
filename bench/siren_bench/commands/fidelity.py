"""`siren bench fidelity`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from siren_bench.engines.engine import SirenEdge
from siren_bench.engines.process import load_engines
from siren_bench.peers.registry import is_generative
from siren_bench.quality.fidelity import (
    fidelity_entries,
    fidelity_table,
    score_corpus,
    thresholds_told,
)
from siren_bench.records.progress import console, progress_bar
from siren_bench.subjects.corpus import load_corpus
from siren_runtime.bundle.reader import load_bundle
from siren_runtime.errors import InputError

from . import options
from .finish import finish
from .workbench import Workbench, engine_settings, open_workbench


def fidelity(
    head: options.Head,
    corpus: Annotated[
        list[Path],
        typer.Argument(help="JSON lines, as siren score reads them; label 0 or 1.", exists=True),
    ],
    backbone: options.Backbone = None,
    engines: options.Engines = options.ALL_PRECISIONS,
    bundles: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundle",
            help="A bundle of the same head to compare too, such as one for TensorRT or made with "
            "calibration texts; may be given again.",
        ),
    ] = None,
    peers: options.Peers = "",
    split: Annotated[
        str | None, typer.Option(help='Only rows of this "split"; a head knows its train rows.')
    ] = None,
    texts: Annotated[
        int | None, typer.Option(min=1, help="So many, evenly spaced over the corpus; default all.")
    ] = None,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Compare the scores of each precision with the first one's on real text.

    All run in ONNX Runtime on the CPU, bundles for TensorRT too. Largest and mean difference,
    share of equal verdicts at the head's thresholds, of prompts and of responses, without spans,
    and, where rows have labels and the weights are not random, macro-F1 of each file.
    """
    precisions, peer_list = options.precisions_of(engines), options.peers_of(peers)
    if any(is_generative(name) for name in peer_list):
        raise typer.BadParameter("--peers: generative guards give no score")
    rows = load_corpus(corpus, split=split, limit=texts)
    with open_workbench(head, backbone, keep) as bench, ExitStack() as stack:
        given = [_engine(path, bench, precisions[0], threads) for path in bundles or []]
        made, missing = bench.engines(precisions, peer_list, threads)
        made += given
        if len({engine.name for engine in made}) < len(made):
            raise typer.BadParameter("--bundle: the tables tell folders by name; two have the same")
        with console.status("loading engines"):
            loaded, failed = load_engines(stack, made)
        with progress_bar() as progress:
            scores, broken = score_corpus(loaded, [row.text for row in rows], progress)
        decision = bench.artifact.decision
        results = fidelity_entries(scores, rows, decision, random=bench.subject.random)
        settings = {
            **bench.described,
            "corpus": [file.name for file in corpus],
            "split": split,
            "texts": len(rows),
            "thresholds": thresholds_told(decision),
            **engine_settings(made, {**missing, **failed, **broken}),
        }
    table = fidelity_table(results)
    finish(options.result_path(output, "fidelity", head), "fidelity", settings, results, table)


def _engine(path: Path, bench: Workbench, precision: str, threads: int) -> SirenEdge:
    """An exported bundle, which must read the same features of the same text as ours.

    Raises:
        BundleError: the bundle is damaged.
        InputError: it is another head's, or of bfloat16, which runs on a TensorRT plan alone.
    """
    manifest, own = load_bundle(path).manifest, load_bundle(bench.bundle(precision)).manifest
    if (manifest.head, manifest.text) != (own.head, own.text):
        raise InputError(f"{path}: a bundle of another head than {bench.subject.description}")
    if manifest.precision == "bf16":
        raise InputError(f"{path}: bf16 does not run in ONNX Runtime, on a TensorRT plan alone")
    label = f"{manifest.precision} for {manifest.target} ({path.resolve().name})"
    return SirenEdge(path.resolve(), manifest.precision, threads, label=label)
