"""`siren bench serve`."""

from typing import Annotated

import typer

from siren_bench.serve import measure, serve_table, server, shared_guard, thread_pool
from siren_bench.texts import texts_of
from siren_bench.workbench import open_workbench
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.commands.console import need

from . import options
from .finish import finish


def serve(
    head: options.Head,
    backbone: options.Backbone = None,
    precision: Annotated[str, typer.Option(help="Of our bundle.")] = "int8",
    callers: Annotated[str, typer.Option(help="How many ask at once.")] = "1,16",
    tokens: Annotated[str, typer.Option(help="Lengths of the texts.")] = "20,40,60,80,100,128",
    seconds: Annotated[float, typer.Option(min=0.1, help="That they ask for.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Of all subjects.")] = 3,
    cores: Annotated[int, typer.Option(min=1, help="Threads times runs of the guards.")] = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Many callers at once: threads over Guard.score, a SharedGuard, and siren serve over HTTP.

    Each caller asks again when it is answered (a closed loop), for a text of a random length. The
    server is a process of its own; its callers are threads of this one, as the others are.
    """
    need("litestar", "uvicorn")
    (chosen,) = options.precisions_of(precision)
    lengths, counts = (
        options.numbers_of("--tokens", tokens),
        options.numbers_of("--callers", callers),
    )
    with open_workbench(head, backbone, keep) as bench:
        bundle = bench.bundle(chosen)
        texts = [*texts_of((bundle / TOKENIZER_FILE).read_bytes(), lengths).values()]
        subjects = {
            "threads over Guard.score": thread_pool(bundle, None),
            "threads over Guard.score, threads=1": thread_pool(bundle, 1),
            f"SharedGuard, {cores} runs of 1 thread": shared_guard(bundle, 1, cores),
            f"SharedGuard, 1 run of {cores} threads": shared_guard(bundle, cores, 1),
            f"siren serve, {cores} runs of 1 thread": server(bundle, 1, cores),
        }
        results = measure(subjects, texts, counts, seconds, rounds)
        settings = {
            "head": bench.subject.description,
            "precision": chosen,
            "tokens": lengths,
            "seconds": seconds,
            "rounds": rounds,
            "cores": cores,
        }
    path = options.result_path(output, "serve", head)
    finish(path, "serve", settings, results, serve_table(results))
