"""`siren bench latency`."""

from contextlib import ExitStack
from typing import Annotated

import typer

from siren_bench.engines.process import load_engines
from siren_bench.records.progress import console, progress_bar
from siren_bench.speed.latency import (
    add_shares,
    latency_table,
    measure_latency,
    ratio_table,
    samples_line,
)
from siren_bench.speed.roofline import ceilings_line, measure_ceilings
from siren_bench.subjects.texts import texts_of
from siren_runtime.errors import InputError

from . import options
from .finish import finish
from .workbench import engine_settings, open_workbench

_LENGTHS = "8,32,128,512,2048"


def latency(
    head: options.Head,
    backbone: options.Backbone = None,
    engines: Annotated[
        str,
        typer.Option(
            help=f"Our precisions, of {', '.join(options.PRECISIONS)}, read as llm-siren reads, "
            f"without spans; int8{options.WITH_SPANS} is the guard as it is shipped, which scores "
            "spans too. Ratios are taken to the first."
        ),
    ] = "fp32",
    peers: options.Peers = options.LLM_SIREN,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Lengths in tokens, special tokens included. [default: 8,32,128,512,2048, as far "
            "as the head reads]"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each engine and length.")] = 20,
    warm_up: Annotated[int, typer.Option(min=0, help="Rounds before these.")] = 2,
    budget: Annotated[
        float,
        typer.Option(help="Seconds at each length after which no further round starts; 3 are run."),
    ] = 600.0,
    slowest: Annotated[
        float, typer.Option(help="Seconds a text from which a peer is left out at longer lengths.")
    ] = 60.0,
    threads: options.Threads = 2,
    roofline: Annotated[bool, typer.Option(help="Measure the machine's ceilings too.")] = True,
    keep: options.Keep = None,
    output: options.Output = None,
) -> None:
    """Time one text at a time: our engines against their peers.

    Each model has a process of its own; every round times each engine once, and the ratio is
    the median over rounds. A peer that cannot run here is reported with what it needs.
    """
    lengths = options.numbers_of("--tokens", tokens or _LENGTHS)
    spanned = [f"{precision}{options.WITH_SPANS}" for precision in options.PRECISIONS]
    precisions, peer_list = options.precisions_of(engines, spanned), options.peers_of(peers)
    with open_workbench(head, backbone, keep, lengths[-1]) as bench, ExitStack() as stack:
        lengths = _readable(lengths, bench.artifact.max_length, given=tokens is not None)
        texts = texts_of(bench.checkpoint.tokenizer_json, lengths)
        made, missing = bench.engines(precisions, peer_list, threads)
        ceilings = None
        if roofline:
            with console.status("measuring the machine"):
                ceilings = measure_ceilings(threads)
        with console.status("loading engines"):
            loaded, failed = load_engines(stack, made)
        with progress_bar() as progress:
            results, broken = measure_latency(
                loaded,
                texts,
                rounds,
                warm_up=warm_up,
                budget=budget,
                slowest=slowest,
                progress=progress,
            )
        if ceilings:
            with console.status("measuring the machine again"):
                ceilings = ceilings.or_better(measure_ceilings(threads))
            add_shares(results, loaded, bench.size, ceilings)
        settings = {
            **bench.described,
            "rounds": rounds,
            "warm_up": warm_up,
            "budget_s": budget,
            "slowest_s": slowest,
            "threads": threads,
            "batch": 1,
            "ceilings": ceilings and ceilings.to_dict(),
            **engine_settings(made, {**missing, **failed, **broken}),
        }
    table = f"{latency_table(results)}\n{samples_line(results, warm_up)}\n"
    if len(precisions) > 1:
        table += f"\n{ratio_table(results)}"
    if ceilings:
        table += f"\n{ceilings_line(ceilings)}\n"
    finish(options.result_path(output, "latency", head), "latency", settings, results, table)


def _readable(lengths: list[int], longest: int, *, given: bool) -> list[int]:
    """The lengths as far as the head reads; those that were asked for must all be."""
    if not given:
        return [length for length in lengths if length <= longest] or [longest]
    if lengths[-1] > longest:
        raise InputError(f"--tokens {lengths[-1]} is more than the head's max_length {longest}")
    return lengths
