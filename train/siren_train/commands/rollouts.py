"""`siren rollouts`: targets for prefixes of responses, for forecast heads."""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from siren_runtime import Guard
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import report
from siren_runtime.text.reading import AS_LLM_SIREN, DEFAULT_MAX_BYTES
from siren_train.data.reading import LEFT_OUT, Reading
from siren_train.data.sources import parse_source

from . import options
from .extra import need_train_extra

need_train_extra()

if TYPE_CHECKING:
    from siren_train.rollouts.generator import Generator, Sampling
    from siren_train.rollouts.prefixes import Prefix
    from siren_train.rollouts.targets import Target

app = typer.Typer(add_completion=False)

_KEY = "OPENAI_API_KEY"
_EPILOG = """
Examples:

siren rollouts data/responses.jsonl -o targets.jsonl

siren rollouts data/responses.jsonl -o targets.jsonl --judge smollm2 --model smollm2 --generator http://localhost:8000/v1

siren rollouts data/responses.jsonl -o targets.jsonl --judge smollm2 --generator ./smollm2-genai

siren extract smollm2 targets.jsonl -o features --prefixes
"""


@app.command(epilog=_EPILOG)
def rollouts(
    data: options.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .jsonl file to write.")],
    prefixes: Annotated[
        int,
        typer.Option(
            min=2,
            help="Of a response, at most: they end behind words, from none of it to all of it.",
        ),
    ] = 8,
    generator: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|URL",
            help="What goes on from each prefix: a model folder of onnxruntime-genai, run here, "
            "whose own head, if it is grafted, is not asked; or an OpenAI-compatible endpoint, "
            f"whose key is read from {_KEY}. Without one, targets are made of the labels.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="The generator's name there; of a folder, default: the folder's."),
    ] = "",
    judge: Annotated[
        str, typer.Option(metavar="BUNDLE", help="The guard that scores the continuations.")
    ] = "",
    count: Annotated[
        int, typer.Option("--rollouts", min=1, help="Continuations of each prefix.")
    ] = 4,
    api: Annotated[
        Literal["chat", "completions"],
        typer.Option(
            help="chat: the prefix is the beginning of the assistant's message, as vLLM, SGLang, "
            "llama.cpp and siren serve --generate take it, and a folder's chat template; "
            "completions: plain text goes on."
        ),
    ] = "chat",
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a continuation.")] = 48,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the generator.")] = 1.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Continuations under way at once.")] = 4,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that an endpoint's answer may take.")
    ] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Of the first continuation.")] = 0,
    splits: options.Splits = "",
    max_train_rows: options.MaxTrainRows = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of the judge, and of a folder; default: all."),
    ] = None,
    text: options.TextColumns = "",
    label: options.LabelColumn = "label",
    split_column: options.SplitColumn = "split",
    id_column: options.IdColumn = "id",
    category: options.CategoryColumn = "category",
    classes: options.Classes = "safe,harmful",
    max_bytes: options.MaxBytes = DEFAULT_MAX_BYTES,
) -> None:
    """Say of prefixes of responses how harmful what follows will be.

    By the labels: a prefix's target is the mean label of the responses that begin with it. By
    rollouts: the mean score that a guard gives to what a generator makes of it. A run of those that
    was stopped goes on where it was when the same command is given again; OUTPUT.work keeps every
    continuation and its score. Prefixes that the generator or the judge cannot take are left out.
    """
    # Only here, so that siren --help need not wait for what reads data.
    from siren_train.rollouts.generator import Sampling
    from siren_train.rollouts.prefixes import prefixes_of
    from siren_train.rollouts.targets import label_targets, write_targets

    if generator is not None:
        model = model or _name_of(generator)
        if not judge:
            raise typer.BadParameter("--generator needs --judge")
    elif model or judge:
        raise typer.BadParameter("--model and --judge go with --generator")
    columns = options.make_columns(
        text=text,
        label=label,
        split=split_column,
        id_=id_column,
        category=category,
        classes=classes,
        max_bytes=max_bytes,
    )
    reading = Reading(
        [parse_source(argument) for argument in data],
        columns,
        splits=options.split_names(splits),
        most_rows=options.most_rows(max_train_rows),
    )
    if reading.left_out:
        report(LEFT_OUT.format(reading.left_out))
    found = prefixes_of(reading.rows(), prefixes)
    if generator is None:
        targets = label_targets(found)
    else:
        targets, refusals = _rolled_out(
            found,
            generator,
            Sampling(model, api, max_tokens, temperature),
            judge,
            count=count,
            seed=seed,
            concurrency=concurrency,
            timeout_s=timeout,
            threads=threads,
            work=output.with_name(f"{output.name}.work"),
        )
        if refusals:
            report(f"{len(refusals)} prefixes were left out, the first since {refusals[0]}")
    write_targets(output, targets)
    mean = sum(target.target for target in targets) / len(targets)
    report(f"{output}: {len(targets):,} prefixes, mean target {mean:.3f}")


def _is_folder(generator: str) -> bool:
    return "://" not in generator and Path(generator).is_dir()


def _name_of(generator: str) -> str:
    """The name of a generator that was given none: its folder's."""
    if _is_folder(generator):
        return Path(generator).resolve().name
    raise typer.BadParameter(
        f"--generator {generator!r} is no folder that is there; if it is a URL, --model must say "
        "the generator's name there"
    )


def _rolled_out(
    prefixes: "list[Prefix]",
    generator: str,
    sampling: "Sampling",
    judge: str,
    *,
    count: int,
    seed: int,
    concurrency: int,
    timeout_s: float,
    threads: int | None,
    work: Path,
) -> "tuple[list[Target], list[str]]":
    from siren_train.rollouts.targets import RunSettings, digest, rollout_targets

    opened = _opened(generator, sampling, timeout_s, threads)
    # A long continuation is judged as a whole, not by its beginning; and all of them by scores of
    # one depth, since targets are means of them.
    read = {**AS_LLM_SIREN, "long_text": "windows", "exits": False}
    folder = options.bundle_folder(judge)
    with opened as goes_on, Guard.load(folder, threads=threads, **read) as guard, Bars() as bars:
        settings = RunSettings(
            prefixes=digest([(one.prompt, one.text) for one in prefixes]),
            model=sampling.model,
            api=sampling.api,
            rollouts=count,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            judge=digest(*guard.manifests),
            seed=seed,
            engine=goes_on.digest,
        )
        return rollout_targets(
            prefixes,
            goes_on,
            guard,
            settings,
            work,
            concurrency=concurrency,
            progress=bars.update,
        )


def _opened(
    generator: str, sampling: "Sampling", timeout_s: float, threads: int | None
) -> "AbstractContextManager[Generator]":
    """The generator that a folder or a URL names."""
    from siren_train.rollouts.endpoint import Endpoint
    from siren_train.rollouts.folder import FolderGenerator

    if _is_folder(generator):
        return nullcontext(FolderGenerator(Path(generator), sampling, threads=threads))
    return Endpoint(generator, sampling, key=os.environ.get(_KEY), timeout_s=timeout_s)
