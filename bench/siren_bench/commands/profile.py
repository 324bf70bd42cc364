"""`siren bench profile`."""

from typing import Annotated

import typer

from siren_bench.engines.engine import SirenEdge
from siren_bench.records.progress import progress_bar
from siren_bench.speed.profile import measure_profile, profile_table
from siren_bench.subjects.texts import texts_of

from . import options
from .finish import finish
from .workbench import engine_settings, open_workbench


def profile(
    head: options.Head,
    backbone: options.Backbone = None,
    engines: options.Engines = "fp32",
    tokens: Annotated[str, typer.Option(help="Lengths of the texts.")] = "32,512",
    runs: Annotated[int, typer.Option(min=1, help="Scores that are averaged.")] = 5,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Show the share of every operator in our engines' time, by ONNX Runtime's profiler."""
    lengths = options.numbers_of("--tokens", tokens)
    precisions = options.precisions_of(engines)
    with open_workbench(head, backbone, keep, lengths[-1]) as bench:
        texts = texts_of(bench.checkpoint.tokenizer_json, lengths)
        made = [SirenEdge(bench.bundle(name), name, threads) for name in precisions]
        results = []
        with progress_bar() as progress:
            for number, engine in enumerate(made):
                results += measure_profile(engine, texts, runs)
                progress("profiling", number + 1, len(made))
        settings = {
            **bench.described,
            "runs": runs,
            "threads": threads,
            **engine_settings(made, {}),
        }
    path = options.result_path(output, "profile", head)
    finish(path, "profile", settings, results, profile_table(results))
