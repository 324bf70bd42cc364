"""`siren bench fidelity-verdicts`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.quality.fidelity import (
    fidelity_entries,
    fidelity_table,
    recorded_scores,
    thresholds_told,
)
from siren_bench.records.record import read_record
from siren_bench.subjects.corpus import load_corpus
from siren_bench.subjects.subject import heads_of
from siren_export.heads.registry import load_artifact
from siren_runtime.bundle.heads import PRIMARY_HEAD

from . import options
from .finish import finish


def fidelity_verdicts(
    record: Annotated[
        Path, typer.Argument(help="What siren bench fidelity wrote.", exists=True, dir_okay=False)
    ],
    head: Annotated[
        str, typer.Argument(help="The guard that it is of: a shipped one, or a head's folder.")
    ],
    corpus: Annotated[
        list[Path], typer.Argument(help="The files that it is of, in their order.", exists=True)
    ],
    output: Annotated[Path | None, options.output_option("RECORD itself")] = None,
) -> None:
    """Tell a record's verdicts and macro-F1 anew by the head's thresholds, from its scores.

    Nothing is scored: command, machine and versions stay those of the scores.
    """
    measured = read_record(record)
    settings = {name: of for name, of in measured["settings"].items() if name != "threshold"}
    rows = load_corpus(corpus, split=settings["split"], limit=settings["texts"])
    artifact = load_artifact(heads_of(head)[PRIMARY_HEAD])
    names = [file.name for file in corpus]
    scores = recorded_scores(measured, names, rows, artifact.weights_sha256)
    results = fidelity_entries(scores, rows, artifact.decision, random=False)
    settings["thresholds"] = thresholds_told(artifact.decision)
    finish(output or record, "fidelity", settings, results, fidelity_table(results), measured)
