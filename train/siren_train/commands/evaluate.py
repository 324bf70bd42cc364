"""`siren evaluate`: measure a guard, or an ensemble of guards, on labelled text."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec.structs import replace

from siren_runtime import Guard
from siren_runtime.commands.bars import Bars
from siren_runtime.commands.console import refuse_options, report
from siren_runtime.errors import InputError
from siren_runtime.text.reading import AS_LLM_SIREN, DEFAULT_MAX_BYTES, LongText
from siren_train.data.benchmarks import (
    BENCHMARKS,
    GROUPS,
    benchmark_sources,
    find_benchmarks,
    paper_figures,
)
from siren_train.data.sources import parse_source

from . import options
from .extra import need_train_extra
from .reports import write_report

if TYPE_CHECKING:
    from siren_train.measure.evaluate import Evaluation, Scores

need_train_extra()

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

siren evaluate my-guard data/*.jsonl -o evaluation --by category

siren evaluate my-guard streams.jsonl --streaming --false-alarms 0.1 -o evaluation

siren evaluate my-guard data/*.jsonl --diluted 100,300,1000 --max-rows 200 -o evaluation

siren evaluate my-guard prompts.jsonl --disguised

siren evaluate my-guard --benchmark siren -o evaluation

siren evaluate my-agent-guard runs.jsonl -o evaluation
"""


@app.command(epilog=_EPILOG)
def evaluate(
    context: typer.Context,
    bundle: Annotated[
        str,
        typer.Argument(
            help="Folder of a bundle or an ensemble, a shipped guard's name (minilm), or a hub "
            "repository id."
        ),
    ],
    data: options.OptionalData = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for JSON, tables and plots.")
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option("--with", help="A further bundle, whose scores are averaged in; repeatable."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which rows to score.")] = "test",
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Harmful from this score; default: the bundle's."),
    ] = None,
    by: Annotated[
        Literal["dataset", "category"], typer.Option(help="How finely to report.")
    ] = "dataset",
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming",
            help="Rows are responses with harm_start and harm_end; measure when the alarm comes.",
        ),
    ] = False,
    words: Annotated[
        int | None,
        typer.Option(min=1, help="Words between scores of a stream; default: 1, an encoder's 8."),
    ] = None,
    pool: Annotated[
        Literal["conversation", "response"],
        typer.Option(
            help="For --streaming with a decoder: what counts, prompt and response as in a score, "
            "or the response alone, as the SIREN paper has it."
        ),
    ] = "response",
    false_alarms: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="For --streaming: measure each head at the threshold at which at most this share "
            "of the safe streams raises an alarm.",
        ),
    ] = None,
    diluted: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,...",
            help="Measure rows among so many tokens of safe rows of their data set, read by their "
            "beginning, in windows and in spans.",
        ),
    ] = None,
    disguised: Annotated[
        bool,
        typer.Option(
            "--disguised",
            help="Measure prompts whose letters are swapped, left out, masked, spelled apart or "
            "put as digits, or whose words are run together or strewn with signs.",
        ),
    ] = False,
    max_rows: Annotated[
        int | None, typer.Option(min=2, help="Of a data set, each class alike; default: all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    long_text: Annotated[
        LongText,
        typer.Option(
            help="How a text over the guard's max_length is read: its beginning, as the SIREN "
            "paper measures and heads are trained, or windows, as guards read by default."
        ),
    ] = "truncate",
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Public benchmarks instead of DATA, repeatable: {', '.join(GROUPS)}, or one of "
            f"{', '.join(one.name for one in BENCHMARKS)}.",
        ),
    ] = None,
    downloads: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Downloaded benchmarks, FOLDER/org/name as on the hub; default: the hub.",
        ),
    ] = None,
    text: options.TextColumns = "",
    label: options.LabelColumn = "label",
    split_column: options.SplitColumn = "split",
    id_column: options.IdColumn = "id",
    category: options.CategoryColumn = "category",
    classes: options.BundleClasses = "",
    labels: options.Labels = "",
    max_bytes: options.MaxBytes = DEFAULT_MAX_BYTES,
) -> None:
    """Measure a guard on labelled text: macro-F1 per data set and their mean, and much else.

    The Markdown report goes to standard output; --output keeps it with JSON and plots.

    --streaming feeds each `response`, after its `prompt`, as it would arrive. harm_start and
    harm_end are characters of the response; a row without them is safe, or harmful throughout
    where its label is.

    --benchmark reads public data sets as the SIREN paper's code does and shows the paper's figures
    beside; siren is its seven. qwen3guard-streams and what it is made of are streamed. What was
    assumed, and how to reproduce the paper's table: docs/public-benchmarks.md.

    A guard of trajectories reads rows with messages, tools and a label, as siren extract does.

    Where a head has labels, they are those that the category column names, joined by +, and each
    is measured; so is each of more than two classes.
    """
    if bool(data) == bool(benchmark) or (downloads and not benchmark):
        raise typer.BadParameter("give DATA, or --benchmark, which --downloads goes with")
    try:
        benchmarks = find_benchmarks(benchmark or [])
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--benchmark") from None
    streaming = streaming or any(one.streams for one in benchmarks)
    if not streaming:
        refuse_options(context, ["words", "pool"], "--streaming")
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file is there; reports go into a folder")
    if streaming and (ensemble or by == "category"):
        raise typer.BadParameter("--streaming takes one bundle, and reports by data set")
    rewritten = "--diluted" if diluted else "--disguised" if disguised else None
    if rewritten and (streaming or by == "category"):
        raise typer.BadParameter(f"{rewritten} reports by data set, of whole texts")
    if diluted and disguised:
        raise typer.BadParameter("--diluted and --disguised are measured one by one")
    if false_alarms is not None and (threshold is not None or not streaming):
        raise typer.BadParameter("--false-alarms goes with --streaming, in place of --threshold")
    # Only here, so that siren --help need not wait for scikit-learn and matplotlib.
    from siren_train.measure.evaluate import measure, score_rows
    from siren_train.measure.exit_evaluation import measure_exits

    sources = [
        *(parse_source(argument) for argument in data or []),
        *benchmark_sources(benchmarks, downloads),
    ]
    of_rows = text, label, split_column, id_column, category, classes
    columns_of = partial(options.make_columns, *of_rows, max_bytes=max_bytes)
    if streaming:
        from .streaming import evaluate_streaming

        folder = options.bundle_folder(bundle)  # scores are ranked, so they are of one depth
        guard = Guard.load(folder, threads=threads, streaming=True, exits=False, **AS_LLM_SIREN)
        if guard.manifests[0].task == "trajectory":
            raise _scores_trajectories(bundle)
        columns = columns_of(options.labels(guard.manifest))
        evaluate_streaming(
            guard,
            bundle,
            sources,
            columns,
            split=split,
            threshold=threshold,
            words=words,
            pool=pool,
            false_alarms=false_alarms,
            max_rows=max_rows,
            output=output,
        )
        return
    bundles = [bundle, *(ensemble or [])]
    folders = [options.bundle_folder(name) for name in bundles]
    source = folders if ensemble else folders[0]
    read = {**AS_LLM_SIREN, "long_text": long_text}  # every row counts, whatever it holds
    guard = Guard.load(source, threads=threads, **read)
    trajectories = guard.manifests[0].task == "trajectory"
    if trajectories and (benchmarks or rewritten or text or labels):
        raise _scores_trajectories(bundle)
    columns = columns_of(options.labels(guard.manifests[0]), labels, trajectories=trajectories)
    if diluted:
        from .diluted import evaluate_diluted

        evaluate_diluted(
            guard,
            bundles,
            sources,
            columns,
            lengths=diluted,
            split=split,
            threshold=threshold,
            max_rows=max_rows,
            output=output,
        )
        return
    if disguised:
        from .disguised import evaluate_disguised

        evaluate_disguised(
            guard,
            bundles,
            sources,
            columns,
            split=split,
            threshold=threshold,
            max_rows=max_rows,
            output=output,
        )
        return
    response_threshold = None
    if threshold is None:
        threshold, of_responses = guard.default_threshold, guard.judge.primary.responses
        response_threshold = of_responses.threshold if of_responses else None
    about: dict[str, Any] = {
        "bundles": bundles,
        "sources": [source.name for source in sources],
        "split": split,
        "threshold": threshold,
        "response_threshold": response_threshold,
    }
    whole = None
    with Bars() as bars:
        scores = score_rows(guard, sources, columns, split, bars.update, max_rows=max_rows)
        if scores.exits.any():
            guard.close()
            guard = Guard.load(source, threads=threads, exits=False, **read)
            whole = score_rows(guard, sources, columns, split, bars.update, max_rows=max_rows)
    evaluation = measure(
        scores,
        **about,
        by_category=by == "category",
        thresholds={name: dict(head.labels) for name, head in guard.judge.heads.items()},
    )
    if whole is not None:
        blocks = guard.manifest.backbone.blocks_kept
        decides = threshold, response_threshold
        changed = scores.flagged(*decides) != whole.flagged(*decides)
        by_dataset = {n: m.macro_f1 for n, m in measure(whole, **about).by_dataset.items()}
        exits = measure_exits(scores.exits, scores.tokens, changed, blocks, by_dataset)
        evaluation = replace(evaluation, exits=exits)
    evaluation = replace(evaluation, max_rows=max_rows)
    measured = [one for one in benchmarks if one.name in evaluation.by_dataset]
    evaluation = replace(
        evaluation,
        paper=paper_figures(measured),
        notes={one.name: one.note for one in measured if one.note},
    )
    _report(evaluation, scores, output)


def _scores_trajectories(bundle: str) -> InputError:
    return InputError(
        f"{bundle}: scores trajectories of agents: rows have messages, tools and a label, and "
        "there is no --streaming, --benchmark, --diluted, --disguised, --text and --labels"
    )


def _report(evaluation: "Evaluation", scores: "Scores", output: Path | None) -> None:
    """Print the tables, and write them with JSON and plots to `output`, if it is given."""
    from siren_train.measure.evaluate import evaluation_markdown
    from siren_train.measure.plots import plot_evaluation

    markdown = evaluation_markdown(evaluation)
    typer.echo(markdown, nl=False)
    if output is not None:
        write_report(output, "evaluation", evaluation, markdown)
        plot_evaluation(scores, evaluation, output)
        report(f"{output}: evaluation.json, evaluation.md and plots")
