"""`siren bench scaling`."""

from contextlib import ExitStack
from typing import Annotated, Any

import typer
from rich.text import Text

from siren_bench.engines.engine import Engine
from siren_bench.engines.process import load_engines
from siren_bench.records.progress import console
from siren_bench.speed.scaling import (
    TEXT_TOKENS,
    Point,
    along_tokens_and_batch,
    fits,
    measure_points,
    scaling_table,
)
from siren_bench.subjects.texts import texts_of

from . import options
from .finish import finish
from .workbench import engine_settings, open_workbench


def scaling(
    heads: Annotated[
        list[str],
        typer.Argument(
            help="The first is measured along tokens, batch and threads; all of them, one after "
            f"the other, along size. As in latency: minilm, a folder, or {options.SHAPE_NAMES}."
        ),
    ],
    engines: options.Engines = "fp32",
    peers: options.Peers = "",
    tokens: Annotated[str, typer.Option(help="Lengths of one text.")] = "8,32,128,512",
    batches: Annotated[str, typer.Option(help="Texts in one call.")] = "1,4,16",
    threads: Annotated[str, typer.Option(help="Threads; the last is used elsewhere.")] = "1,2",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each point.")] = 5,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Measure how cost grows with tokens, batch, threads and model size, and fit exponents.

    Along batch, threads and size a text has 32 tokens.
    """
    lengths = options.numbers_of("--tokens", tokens)
    batch_sizes = options.numbers_of("--batches", batches)
    thread_counts = options.numbers_of("--threads", threads)
    precisions, peer_list = options.precisions_of(engines), options.peers_of(peers)
    results: list[dict[str, Any]] = []
    engines_made: dict[str, Engine] = {}
    absent: dict[str, str] = {}
    settings: dict[str, Any] = {
        "heads": {},
        "weights_sha256": {},
        "rounds": rounds,
        "threads": thread_counts,
    }
    for head in heads:
        with open_workbench(head, None, keep, lengths[-1]) as bench:
            settings["heads"][head] = bench.subject.description
            settings["weights_sha256"][head] = bench.described["weights_sha256"]
            texts = texts_of(bench.checkpoint.tokenizer_json, {*lengths, TEXT_TOKENS})
            first = head == heads[0]
            for count in thread_counts if first else thread_counts[-1:]:
                points = [Point("threads", count, [texts[TEXT_TOKENS]])] if first else []
                if first and count == thread_counts[-1]:
                    points += along_tokens_and_batch(texts, lengths, batch_sizes)
                if len(heads) > 1 and count == thread_counts[-1]:
                    parameters = bench.size.block_parameters
                    points.append(Point("parameters", parameters, [texts[TEXT_TOKENS]]))
                made, missing = bench.engines(precisions, peer_list, count)
                with ExitStack() as stack, console.status(Text(f"{head}, threads: {count}")):
                    loaded, failed = load_engines(stack, made)
                    measured, broken = measure_points(loaded, points, rounds)
                results += measured
                engines_made |= {engine.name: engine for engine in made}
                absent |= {**missing, **failed, **broken}
    settings |= engine_settings([*engines_made.values()], absent)
    settings["fits"] = fits(results)
    table = scaling_table(results)
    path = options.result_path(output, "scaling", heads[0])
    finish(path, "scaling", settings, results, table)
