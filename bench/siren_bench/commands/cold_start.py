"""`siren bench cold-start` and `siren bench memory`."""

from typing import Annotated

import typer

from siren_bench.records.progress import progress_bar
from siren_bench.speed.cold_start import (
    cold_start_table,
    measure_cold_starts,
    measure_memory,
    memory_table,
)
from siren_bench.subjects.texts import texts_of
from siren_runtime.errors import InputError

from . import options
from .finish import finish
from .workbench import engine_settings, open_workbench


def cold_start(
    head: options.Head,
    backbone: options.Backbone = None,
    engines: options.Engines = "fp32",
    peers: options.Peers = options.LLM_SIREN,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the text.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each engine.")] = 5,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Time load and first score in a fresh process, its files in the page cache."""
    precisions, peer_list = options.precisions_of(engines), options.peers_of(peers)
    with open_workbench(head, backbone, keep) as bench:
        made, missing = bench.engines(precisions, peer_list, threads)
        text = texts_of(bench.checkpoint.tokenizer_json, [tokens])[tokens]
        with progress_bar() as progress:
            results, failed = measure_cold_starts(made, text, rounds, progress)
        settings = {
            **bench.described,
            "tokens": tokens,
            "rounds": rounds,
            "threads": threads,
            **engine_settings(made, {**missing, **failed}),
        }
    table = cold_start_table(results)
    finish(options.result_path(output, "cold-start", head), "cold-start", settings, results, table)


def memory(
    head: options.Head,
    backbone: options.Backbone = None,
    engines: options.Engines = "fp32",
    peers: options.Peers = options.LLM_SIREN,
    tokens: Annotated[str, typer.Option(help="Lengths of the texts.")] = "32,512",
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each engine.")] = 3,
    threads: options.Threads = 2,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Measure resident memory after texts of rising length, each engine in a fresh process.

    File-backed pages count, and so does what Python itself holds.
    """
    lengths = options.numbers_of("--tokens", tokens)
    precisions, peer_list = options.precisions_of(engines), options.peers_of(peers)
    with open_workbench(head, backbone, keep, lengths[-1]) as bench:
        if lengths[-1] > bench.artifact.max_length:
            raise InputError(
                f"--tokens {lengths[-1]} is more than the head's max_length "
                f"{bench.artifact.max_length}"
            )
        made, missing = bench.engines(precisions, peer_list, threads)
        texts = texts_of(bench.checkpoint.tokenizer_json, lengths)
        with progress_bar() as progress:
            results, failed = measure_memory(made, texts, rounds, progress)
        settings = {
            **bench.described,
            "rounds": rounds,
            "threads": threads,
            **engine_settings(made, {**missing, **failed}),
        }
    table = memory_table(results)
    finish(options.result_path(output, "memory", head), "memory", settings, results, table)
