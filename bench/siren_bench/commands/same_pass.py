"""`siren bench same-pass`."""

from pathlib import Path
from typing import Annotated

import typer

from siren_bench.records.progress import progress_bar
from siren_bench.records.record import write_record
from siren_bench.speed.same_pass import Plan, measure_same_pass, same_pass_table
from siren_runtime.commands.console import need, write_lines
from siren_runtime.errors import InputError

from . import options

_PROMPT = "Tell me the history of bread, from the first farmers to the bakeries of today, in full."


def same_pass(
    plain: Annotated[Path, typer.Argument(help="A model folder of onnxruntime-genai.")],
    grafted: Annotated[Path, typer.Argument(help="What siren graft made of it.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="A guard of the same backbone and head, to stream beside the model."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What is answered.")] = _PROMPT,
    chat: Annotated[bool, typer.Option(help="Put it in the model's chat template.")] = True,
    tokens: Annotated[int, typer.Option(min=1, help="Of the response, at most.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Of all subjects.")] = 15,
    every: Annotated[
        str, typer.Option(help="Tokens that the head reads at once; two subjects each.")
    ] = "1,4,16",
    beside: Annotated[
        int, typer.Option(min=1, help="Tokens of each round beside a separate guard.")
    ] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each engine.")] = 2,
    output: Annotated[
        Path | None, options.output_option("bench/results/same-pass-GRAFTED.json")
    ] = None,
) -> None:
    """Tokens a second of a model alone, grafted, guarded by its own pass, and by a guard beside it.

    The grafted model is judged by rules, and by the threshold and spans of its folder, as siren
    generate does; none of them is ever reached.

    All subjects take turns of a few tokens in one process, so that a disturbance falls on
    neighbours alike, and each is compared with the plain model of the same round.
    """
    need("onnxruntime_genai")
    plan = Plan(prompt, tokens, rounds, threads, chat, _numbers(every), beside)
    with progress_bar() as progress:
        results = measure_same_pass(plain, grafted, bundle, plan, progress)
    table = same_pass_table(results)
    write_lines(table)
    output = output or options.RESULTS / f"same-pass-{grafted.name}.json"
    settings = {"plain": plain.name, "grafted": grafted.name, "plan": vars(plan)}
    write_record(output, "same-pass", settings, results, table)


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers above 0 that commas part."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise InputError(f"--every is whole numbers above 0, such as 1,4,16; found {text!r}")
    return tuple(dict.fromkeys(map(int, parts)))
