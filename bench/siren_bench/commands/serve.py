"""`siren bench serve`."""

import random
from pathlib import Path
from typing import Annotated, Any

import typer

from siren_bench.engines.process import in_fresh_process
from siren_bench.records.progress import progress_bar
from siren_bench.serving.compare import compare, compare_table
from siren_bench.serving.first_token import first_tokens, first_tokens_table
from siren_bench.serving.hostile import KINDS
from siren_bench.serving.neighbours import neighbours, neighbours_table
from siren_bench.serving.restarts import restarts, restarts_table
from siren_bench.serving.server import server
from siren_bench.serving.soak import soak, soak_table
from siren_bench.serving.subjects import InProcess, OverHttp, Subject, ThreadPool
from siren_bench.subjects.texts import texts_of
from siren_runtime import Guard
from siren_runtime.bundle.manifest import TOKENIZER_FILE
from siren_runtime.commands.console import need

from . import options
from .finish import finish
from .workbench import open_workbench

_SERVER = "siren serve"
_TEXTS_OF_A_LENGTH = 30
_CONNECTIONS = 4096  # of a server that 2,000 idle ones ask nothing
_FIRST_MS = (0.0, 50.0, 200.0)  # of model servers, to their first token


def serve(
    head: options.Head,
    backbone: options.Backbone = None,
    precision: Annotated[str, typer.Option(help="Of our bundle.")] = "int8",
    callers: Annotated[
        str, typer.Option(help="How many ask at once, each again when it is answered.")
    ] = "1,16",
    rates: Annotated[
        str,
        typer.Option(
            help="Requests that come by themselves, in multiples of what the server can; empty "
            "for none."
        ),
    ] = "0.5,2",
    tokens: Annotated[str, typer.Option(help="Lengths of the texts.")] = "20,40,60,80,100,128",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Of all subjects and loads.")] = 3,
    cores: Annotated[int, typer.Option(min=1, help="Threads times runs of the guards.")] = 2,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Ask the server alone for so long, and watch its memory."),
    ] = None,
    restart_rounds: Annotated[
        int | None,
        typer.Option(
            "--restarts",
            min=1,
            help="Reload and end servers, and kill workers, under load, so many times each.",
        ),
    ] = None,
    hostile: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,KIND…",
            help="Ask the server at the least of --rates, alone and beside clients of these kinds: "
            f"{', '.join(KINDS)}; or all.",
        ),
    ] = None,
    first_token: Annotated[
        bool,
        typer.Option(
            "--first-token",
            help="Ask a model server for answers, by itself and behind --upstream, so many rounds "
            "of each of --tokens.",
        ),
    ] = False,
    keep: options.Keep = None,
    output: Annotated[
        Path | None,
        options.output_option(
            "bench/results/serve-HEAD.json; of what is measured by itself serve-soak-HEAD.json, "
            "serve-restarts-, serve-hostile- or serve-first-token-"
        ),
    ] = None,
) -> None:
    """Many callers at once: threads over Guard.score, an AsyncGuard, and siren serve over HTTP.

    Callers of the server are a process of their own. Latencies count from when a request was to be
    sent. With --minutes or --restarts the server alone is asked, by the most --callers, as it is
    with --hostile and --first-token.
    """
    need("litestar", "uvicorn")
    kinds = {
        "serve-soak": minutes is not None,
        "serve-restarts": restart_rounds is not None,
        "serve-hostile": hostile is not None,
        "serve-first-token": first_token,
    }
    asked = [name for name, wanted in kinds.items() if wanted]
    if len(asked) > 1:
        raise typer.BadParameter(f"{' and '.join(asked)} are measurements of their own; give one")
    bench_name = asked[0] if asked else "serve"
    (chosen,) = options.precisions_of(precision)
    lengths = options.numbers_of("--tokens", tokens)
    counts = options.numbers_of("--callers", callers)
    multiples, hostile_kinds = _multiples(rates), _kinds(hostile)
    with open_workbench(head, backbone, keep) as bench, progress_bar() as progress:
        bundle = bench.bundle(chosen)
        tokenizer_json = (bundle / TOKENIZER_FILE).read_bytes()
        texts, most = _texts(tokenizer_json, lengths), max(counts)
        given = ["--threads", 1, "--runs", cores]
        settings: dict[str, Any] = {
            **bench.described,
            "precision": chosen,
            "tokens": lengths,
            "callers": counts,
            "seconds": seconds,
        }
        if bench_name != "serve-restarts":
            settings["cores"] = cores
        results: list[dict[str, Any]]
        if restart_rounds is not None:
            expected = in_fresh_process(_scores, bundle, texts)
            results = restarts(bundle, texts, expected, most, seconds, restart_rounds, progress)
            table = restarts_table(results)
        elif minutes is not None:
            expected = in_fresh_process(_scores, bundle, texts)
            with server(bundle, given) as running:
                results = soak(running, texts, expected, most, minutes, seconds, progress)
            table = soak_table(results)
        elif hostile_kinds:
            expected = in_fresh_process(_scores, bundle, texts)
            share = min(multiples)
            with server(bundle, [*given, "--max-connections", _CONNECTIONS]) as running:
                results, settings["capacity_texts_per_s"] = neighbours(
                    running, hostile_kinds, texts, expected, most, share, seconds, rounds,
                    progress,
                )  # fmt: skip
            settings |= {"rounds": rounds, "rate": share, "connections": _CONNECTIONS}
            table = neighbours_table(results)
        elif first_token:
            prompts = texts_of(tokenizer_json, lengths)
            results = first_tokens(bundle, given, prompts, _FIRST_MS, rounds, progress)
            settings |= {"rounds": rounds, "first_ms": _FIRST_MS}
            table = first_tokens_table(results)
        else:
            with server(bundle, given) as running:
                subjects = _subjects(bundle, cores, running.port)
                results, settings["capacity_texts_per_s"] = compare(
                    subjects, {_SERVER: running.process.pid}, texts, counts, multiples, seconds,
                    rounds, progress,
                )  # fmt: skip
            settings |= {"rounds": rounds, "rates": multiples}
            table = compare_table(results)
    path = options.result_path(output, bench_name, head)
    finish(path, bench_name, settings, results, table)


def _subjects(bundle: Path, cores: int, port: int) -> dict[str, Subject]:
    return {
        "threads over Guard.score": ThreadPool(bundle, None),
        "threads over Guard.score, threads=1": ThreadPool(bundle, 1),
        f"AsyncGuard, 1 run of {cores} threads": InProcess(bundle, cores, 1),
        f"AsyncGuard, {cores} runs of 1 thread": InProcess(bundle, 1, cores),
        _SERVER: OverHttp(port),
    }


def _texts(tokenizer_json: bytes, lengths: list[int]) -> list[str]:
    """Many texts of about these lengths, no two of one score, so that answers mixed up are seen."""
    shuffled = random.Random(0)
    return [
        " ".join(shuffled.sample(words, len(words)))
        for text in texts_of(tokenizer_json, lengths).values()
        for words in [text.split()] * _TEXTS_OF_A_LENGTH
    ]


def _multiples(rates: str) -> list[float]:
    try:
        found = sorted({float(rate) for rate in rates.split(",") if rate.strip()})
    except ValueError:
        raise typer.BadParameter(f"--rates must be like 0.5,2, found {rates!r}") from None
    if found and found[0] <= 0:
        raise typer.BadParameter(f"--rates must be above 0, found {found[0]:g}")
    return found


def _kinds(hostile: str | None) -> list[str]:
    if hostile is None:
        return []
    found = [*KINDS] if hostile == "all" else [kind.strip() for kind in hostile.split(",")]
    if unknown := [kind for kind in found if kind not in KINDS]:
        raise typer.BadParameter(f"--hostile: no {', '.join(unknown)}, only {', '.join(KINDS)}")
    return found


def _scores(bundle: Path, texts: list[str]) -> list[float]:
    with Guard.load(bundle, threads=1) as guard:
        return [result.score for result in guard.score_batch(texts)]
