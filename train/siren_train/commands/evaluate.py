"""`siren evaluate`: measure a guard, or an ensemble of guards, on labelled text."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from siren_runtime import Guard
from siren_runtime.commands.console import report
from siren_train.data.rows import parse_source
from siren_train.store.files import write_atomically

from . import options
from .bars import Bars
from .extra import need_train_extra

need_train_extra()

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

siren evaluate my-guard data/*.jsonl -o evaluation --by category

siren evaluate my-guard streams.jsonl --streaming -o evaluation
"""


@app.command(epilog=_EPILOG)
def evaluate(
    bundle: Annotated[str, typer.Argument(help="Folder of a bundle, or its hub repository id.")],
    data: options.Data,
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
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all.")] = None,
    text: options.TextColumns = "",
    label: options.LabelColumn = "label",
    split_column: options.SplitColumn = "split",
    id_column: options.IdColumn = "id",
    category: options.CategoryColumn = "category",
    classes: options.BundleClasses = "",
) -> None:
    """Measure a guard on labelled text: macro-F1 per data set and their mean, and much else.

    The Markdown report goes to standard output; --output keeps it with JSON and plots.

    --streaming feeds each `response`, after its `prompt`, as it would arrive. harm_start and
    harm_end are characters of the response; a row without them is safe.
    """
    if streaming and (ensemble or by == "category"):
        raise typer.BadParameter("--streaming takes one bundle, and reports by data set")
    # Only here, so that siren --help need not wait for scikit-learn and matplotlib.
    from siren_train.fit.plots import plot_evaluation
    from siren_train.measure.evaluate import evaluation_markdown, measure, score_rows

    sources = [parse_source(argument) for argument in data]
    if streaming:
        from .streaming import evaluate_streaming

        guard = Guard.load(options.bundle_folder(bundle), threads=threads, streaming=True)
        evaluate_streaming(
            guard,
            bundle,
            sources,
            split=split,
            split_column=split_column,
            threshold=threshold,
            words=words,
            output=output,
        )
        return
    bundles = [bundle, *(ensemble or [])]
    folders = [options.bundle_folder(name) for name in bundles]
    guard = Guard.load(folders if ensemble else folders[0], threads=threads)
    columns = options.make_columns(
        text, label, split_column, id_column, category, classes, options.labels(guard)
    )
    threshold = guard.default_threshold if threshold is None else threshold
    with Bars() as bars:
        scores = score_rows(guard, sources, columns, split, bars.update)
    evaluation = measure(
        scores,
        bundles=bundles,
        sources=[source.name for source in sources],
        split=split,
        threshold=threshold,
        by_category=by == "category",
    )
    markdown = evaluation_markdown(evaluation)
    typer.echo(markdown, nl=False)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        data_json = msgspec.json.format(msgspec.json.encode(evaluation)) + b"\n"
        write_atomically(output / "evaluation.json", data_json)
        write_atomically(output / "evaluation.md", markdown.encode())
        plot_evaluation(scores, evaluation, output)
        report(f"{output}: evaluation.json, evaluation.md and plots")
